//! A genuine token with one byte changed, taken out or put in is no token.

use std::sync::LazyLock;

use lockstep::domain::cloud::Cloud;
use lockstep::domain::token::{Authority, Key, Unproved, keys};
use proptest::prelude::*;
use time::OffsetDateTime;

use crate::bench::{LOGIN, TENANT, fixture, graph_rules, json_fixture};

static KEYS: LazyLock<Vec<Key>> =
    LazyLock::new(|| keys(fixture("jwks.json").as_bytes(), TENANT).expect("a key document"));
static GENUINE: LazyLock<(String, OffsetDateTime)> = LazyLock::new(|| {
    let vectors = json_fixture("validation-tokens.json");
    let now = OffsetDateTime::from_unix_timestamp(vectors["validAtUnix"].as_i64().expect("a time"));
    (vectors["tokens"][0]["token"].as_str().expect("a token").to_owned(), now.expect("a date"))
});

fn believed(token: &str) -> bool {
    let authority = Authority::new(Cloud::Global, LOGIN, TENANT);
    let Ok(unproved) = Unproved::read(token) else { return false };
    let Some(key) = KEYS.iter().find(|key| key.kid() == unproved.kid()) else { return false };
    unproved.prove(key).is_ok_and(|proved| proved.judge(&graph_rules(), &authority, GENUINE.1).is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn one_byte_makes_it_worthless(at in any::<proptest::sample::Index>(), byte in 0_u8..128, how in 0_u8..3) {
        let (genuine, _) = &*GENUINE;
        let mut bytes = genuine.clone().into_bytes();
        let at = at.index(bytes.len());
        match how {
            0 => bytes[at] = byte,
            1 => bytes.insert(at, byte),
            _ => drop(bytes.remove(at)),
        }
        let token = String::from_utf8(bytes).expect("ASCII");
        prop_assert_eq!(believed(&token), token == *genuine);
    }

    #[test]
    fn no_text_is_too_strange_to_be_refused(token in "[A-Za-z0-9_.=-]{0,300}|\\PC{0,60}") {
        prop_assert!(!believed(&token));
    }
}

/// The last character of each part has bits that base64 does not use: they are no second way to write a token.
#[test]
fn there_is_one_way_to_write_a_token() {
    let (genuine, _) = &*GENUINE;
    assert!(believed(genuine));
    let letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let ends = genuine.match_indices('.').map(|(at, _)| at).chain([genuine.len()]);
    for end in ends {
        for letter in letters.chars() {
            let token = format!("{}{letter}{}", &genuine[..end - 1], &genuine[end..]);
            assert_eq!(believed(&token), token == *genuine);
        }
    }
    for padded in
        [format!("{genuine}="), format!("{genuine}\n"), format!(" {genuine}"), format!("{genuine}.")]
    {
        assert!(!believed(&padded));
    }
}
