//! Reading JSON that is almost right. Both services have been seen to send text that strict readers refuse (a lone
//! surrogate in a title), numbers where text was promised, and nulls anywhere; one odd record must cost that record
//! and nothing else.

use std::collections::HashMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

/// One page of a list, its records still unread.
#[derive(Debug)]
pub(crate) struct RawPage {
    /// The records, each a JSON text of its own.
    pub(crate) records: Vec<Box<RawValue>>,
    /// The link to the next page.
    pub(crate) next: Option<String>,
}

/// Why an answer of success cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It is no JSON object: broken on its way, or somebody else's. The next one may be better.
    Garbled(String),
    /// It lacks what we cannot do without, and will the next time too.
    Lacking(String),
}

/// The answer's bytes as text that a JSON reader takes: UTF-8, without a byte order mark, without lone surrogates.
pub(crate) fn text_of(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    mend_surrogates(text.strip_prefix('\u{feff}').unwrap_or(&text))
}

/// Replaces `\uD800`-like escapes that have no partner by `\uFFFD`. Everything else stays as it is, byte for byte.
pub(crate) fn mend_surrogates(text: &str) -> String {
    /// The code unit of a `\uXXXX` escape at the start of `bytes`.
    fn unit(bytes: &[u8]) -> Option<u16> {
        let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
        digits.iter().try_fold(0u16, |unit, digit| {
            let value = char::from(*digit).to_digit(16)?;
            Some(unit << 4 | u16::try_from(value).ok()?)
        })
    }
    let bytes = text.as_bytes();
    let mut mended = String::with_capacity(text.len());
    let (mut from, mut at) = (0, 0);
    while at < bytes.len() {
        if bytes[at] != b'\\' {
            at += 1;
            continue;
        }
        // A backslash escapes what follows: `\\ud800` is a backslash and five letters.
        match unit(&bytes[at..]) {
            Some(0xD800..=0xDBFF) if matches!(bytes.get(at + 6..).and_then(unit), Some(0xDC00..=0xDFFF)) => {
                at += 12
            }
            Some(0xD800..=0xDFFF) => {
                mended.push_str(&text[from..at]);
                mended.push_str("\\uFFFD");
                at += 6;
                from = at;
            }
            Some(_) => at += 6,
            // Whatever it is, its second byte is skipped with it. `text` is cut only before a backslash and after an
            // escape of ASCII bytes, so a wide character here is never split.
            None => at += 2,
        }
    }
    mended.push_str(&text[from..]);
    mended
}

/// The envelope of a list.
pub(crate) fn page(body: &[u8], next_member: &str) -> Result<RawPage, String> {
    let text = text_of(body);
    let members: HashMap<String, Box<RawValue>> =
        serde_json::from_str(&text).map_err(|error| format!("not a JSON object: {error}"))?;
    let records = members.get("value").ok_or("no member \"value\"")?;
    let records = serde_json::from_str(records.get()).map_err(|_| "\"value\" is not a list".to_owned())?;
    let next =
        members.get(next_member).and_then(|raw| serde_json::from_str::<Option<String>>(raw.get()).ok());
    Ok(RawPage { records, next: next.flatten().filter(|link| !link.is_empty()) })
}

/// One JSON object.
pub(crate) fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))
}

/// A member as text: null, empty, absent and of another type are all nothing. Numbers are taken for their digits.
pub(crate) fn text(object: &Map<String, Value>, member: &str) -> Option<String> {
    match object.get(member)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A member as a list of texts; what is no text in it is left out.
pub(crate) fn texts(object: &Map<String, Value>, member: &str) -> Vec<String> {
    let Some(Value::Array(items)) = object.get(member) else { return Vec::new() };
    items
        .iter()
        .filter_map(|item| match item {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        })
        .collect()
}

/// A member as an instant in UTC.
pub(crate) fn instant(object: &Map<String, Value>, member: &str) -> Option<OffsetDateTime> {
    parse_instant(object.get(member)?.as_str()?)
}

/// An ISO 8601 instant with 0 to 9 fraction digits; one without a zone is taken for UTC.
pub(crate) fn parse_instant(text: &str) -> Option<OffsetDateTime> {
    let text = text.trim();
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339))
        .ok()
        .map(|at| at.to_offset(time::UtcOffset::UTC))
}

/// An instant for a filter, with the 100 ns that both services count in.
pub(crate) fn filter_instant(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC)
        .format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:7]Z"))
        .expect("every instant has these parts")
}

/// A name as one path segment. Everything but letters, digits, `-`, `_`, `.` and `~` is encoded here, because URL
/// parsers drop tabs and line breaks and would read another incident. `None` for names that no path can hold.
pub(crate) fn segment(name: &str) -> Option<String> {
    if matches!(name, "" | "." | "..") || name.len() > 512 {
        return None;
    }
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    Some(segment)
}

/// A sentence of somebody else's for a log or a person: one line, no control characters, at most `most` characters.
pub(crate) fn sentence(text: &str, most: usize) -> String {
    let mut words = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(word);
    }
    match words.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lone_surrogates_are_replaced() {
        for (text, mended) in [
            (r#""a\ud800""#, r#""a\uFFFD""#),
            (r#""\uDC00\ud800x""#, r#""\uFFFD\uFFFDx""#),
            (r#""\ud83d\ude00""#, r#""\ud83d\ude00""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\uFFFD\ud83d\ude00""#),
            (r#""\\ud800""#, r#""\\ud800""#),
            (r#""\\\ud800é""#, r#""\\\uFFFDé""#),
            (r#""\ud800\n\u00e9""#, r#""\uFFFD\n\u00e9""#),
            (r#""\ud8"#, r#""\ud8"#),
            (r#""\u+800""#, r#""\u+800""#),
            ("\"\\é\\ud800\"", "\"\\é\\uFFFD\""),
            ("\\", "\\"),
        ] {
            assert_eq!(mend_surrogates(text), mended, "{text}");
        }
    }

    #[test]
    fn a_page_survives_records_that_do_not_parse() {
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        let body = format!("\u{feff}{{\"value\":[{{\"t\":\"\\ud800\"}},{deep},7],\"@odata.nextLink\":null}}");
        let page = page(body.as_bytes(), "@odata.nextLink").expect("the envelope is sound");
        assert_eq!(page.records.len(), 3);
        assert_eq!(page.next, None);
        assert_eq!(object(page.records[0].get()).unwrap()["t"], "\u{fffd}");
        assert!(object(page.records[1].get()).is_err() && object(page.records[2].get()).is_err());
    }

    #[test]
    fn no_name_leaves_its_segment() {
        assert_eq!(segment("41").as_deref(), Some("41"));
        assert_eq!(segment("a/../b?c#d%2e\n\0é").as_deref(), Some("a%2F..%2Fb%3Fc%23d%252e%0A%00%C3%A9"));
        assert_eq!((segment(""), segment("."), segment("..")), (None, None, None));
        assert_eq!(segment("%2e%2e").as_deref(), Some("%252e%252e"));
    }

    #[test]
    fn instants_of_any_precision_are_read_and_seven_digits_written() {
        let at = parse_instant("2026-02-25T16:29:33.1Z").unwrap();
        assert_eq!(filter_instant(at), "2026-02-25T16:29:33.1000000Z");
        assert_eq!(parse_instant("2026-02-25T18:29:33.1000000+02:00"), Some(at));
        assert_eq!(parse_instant("2026-02-25T16:29:33.1"), Some(at));
        assert_eq!(parse_instant("yesterday"), None);
    }

    #[test]
    fn a_foreign_sentence_is_one_short_line() {
        assert_eq!(sentence("Invalid data model.\r\n[:\u{7} bad]", 300), "Invalid data model. [: bad]");
        assert_eq!(sentence("ééé", 2), "éé…");
    }
}
