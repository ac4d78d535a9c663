//! The three headers of a signed delivery: whatever a stranger writes into them, he is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep::domain::signature::{Secret, verify};
use time::OffsetDateTime;

const NOW: i64 = 1_772_620_264;

fuzz_target!(|headers: (&str, &str, &str, &[u8])| {
    let (id, timestamp, signatures, body) = headers;
    let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a good secret");
    let now = OffsetDateTime::from_unix_timestamp(NOW).expect("a good instant");
    let secrets = [secret];
    assert!(verify(&secrets, id, timestamp, signatures, body, now).is_err(), "forged");
    // A genuine one is found among whatever else stands in the header.
    let stamp = NOW.to_string();
    let genuine = secrets[0].sign(id, &stamp, body);
    assert!(verify(&secrets, id, &stamp, &genuine, body, now).is_ok());
    let _ = Secret::parse(signatures);
});
