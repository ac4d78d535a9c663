//! Half a surrogate pair, as Graph has been seen to send it in a title: no Rust string can hold it, so inside the
//! emulator a character of the last private plane stands for it, from the body that brings it to the answer that shows
//! it.

use std::borrow::Cow;

/// Where the stand-ins begin: half `\uD800` is U+10D800.
const STAND_IN: u32 = 0x10_0000;
/// The first byte, in UTF-8, of every character of that plane.
const FIRST_BYTE: u8 = 0xf4;

/// A JSON text that a strict reader takes: each escape of half a pair is replaced by its stand-in.
pub(super) fn hide(json: &[u8]) -> Cow<'_, [u8]> {
    let mut hidden: Option<Vec<u8>> = None;
    let (mut from, mut at) = (0, 0);
    while at < json.len() {
        if json[at] != b'\\' {
            at += 1;
            continue;
        }
        // A backslash takes what follows with it: `\\ud800` escaped is a backslash and five letters.
        let length = match (unit(&json[at..]), json.get(at + 6..).and_then(unit)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(half @ 0xd800..=0xdfff), _) => {
                let text = hidden.get_or_insert_default();
                text.extend_from_slice(&json[from..at]);
                let stand_in = char::from_u32(STAND_IN + half).unwrap_or(char::REPLACEMENT_CHARACTER);
                text.extend_from_slice(stand_in.encode_utf8(&mut [0; 4]).as_bytes());
                from = at + 6;
                6
            }
            (Some(_), _) => 6,
            (None, _) => 2,
        };
        at += length;
    }
    match hidden {
        Some(mut text) => {
            text.extend_from_slice(&json[from..]);
            Cow::Owned(text)
        }
        None => Cow::Borrowed(json),
    }
}

/// The same back, in a JSON text that is about to be sent.
pub(super) fn show(json: String) -> String {
    if !json.as_bytes().contains(&FIRST_BYTE) {
        return json;
    }
    let mut shown = String::with_capacity(json.len());
    for character in json.chars() {
        match u32::from(character).checked_sub(STAND_IN) {
            Some(half @ 0xd800..=0xdfff) => shown.push_str(&format!("\\u{half:04x}")),
            _ => shown.push(character),
        }
    }
    shown
}

/// The code unit of a `\uXXXX` escape at the start of a text.
fn unit(json: &[u8]) -> Option<u32> {
    let digits = json.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_pair_goes_in_and_comes_out() {
        for json in [
            r#"{"t":"a\ud800 b\udfff"}"#,
            r#"{"t":"\ud83d\ude00"}"#,
            r#"{"t":"\\ud800"}"#,
            r#"{"t":"\ud83d\ud83d\ude00 é"}"#,
            r#"{"t":"\ud8"}"#,
        ] {
            let hidden = hide(json.as_bytes()).into_owned();
            assert_eq!(show(String::from_utf8(hidden.clone()).unwrap()), json);
            let strict = serde_json::from_slice::<serde_json::Value>(&hidden);
            assert_eq!(strict.is_ok(), !json.ends_with(r#"ud8"}"#), "{json}");
        }
    }
}
