//! Who sent these bytes: the Standard Webhooks scheme, HMAC-SHA256 over `id.timestamp.body`. It judges raw bytes, so
//! that nothing is parsed before its sender is known.

use std::fmt;

use aws_lc_rs::{constant_time, hmac};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use time::OffsetDateTime;

/// How far the sender's clock may be from ours, both ways. Ids are to be kept for twice this.
pub const TOLERANCE_SECS: u64 = 300;
/// The fewest bytes a secret may have.
pub const SHORTEST_SECRET: usize = 16;
/// More signatures than this in one header are not looked at: rotation needs two.
const MOST_SIGNATURES: usize = 16;

/// Secrets come with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A shared secret, ready for use. Never printed.
#[derive(Clone)]
pub struct Secret(hmac::Key);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What is wrong with the text of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Not base64.
    #[error("is not base64 (after `whsec_`)")]
    NotBase64,
    /// Fewer bytes than [`SHORTEST_SECRET`].
    #[error("has fewer than {SHORTEST_SECRET} bytes")]
    TooShort,
}

impl Secret {
    /// Reads `whsec_` and base64; the prefix may be missing, as in the scheme's own libraries.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let bytes =
            BASE64.decode(text.strip_prefix("whsec_").unwrap_or(text)).map_err(|_| SecretError::NotBase64)?;
        if bytes.len() < SHORTEST_SECRET {
            return Err(SecretError::TooShort);
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// The signature header of a message, for senders.
    pub fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        format!("v1,{}", BASE64.encode(self.tag(id, timestamp, body)))
    }

    fn tag(&self, id: &str, timestamp: &str, body: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0);
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            context.update(part);
        }
        context.sign()
    }
}

/// Why a message was not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The timestamp is not a whole number of seconds.
    #[error("the timestamp is not a number of seconds")]
    BadTimestamp,
    /// Sent too long ago: a replay, or a clock that is wrong.
    #[error("the timestamp is more than {TOLERANCE_SECS} s in the past")]
    TooOld,
    /// Sent in the future.
    #[error("the timestamp is more than {TOLERANCE_SECS} s in the future")]
    TooNew,
    /// No `v1` signature in the header that reads as one.
    #[error("there is no v1 signature")]
    NoSignature,
    /// None of the signatures is by one of the secrets.
    #[error("no signature fits any of the secrets")]
    Wrong,
}

/// Believes a message that any of the secrets signed, within the tolerance. The comparison takes the same time wherever
/// the difference is.
pub fn verify(
    secrets: &[Secret],
    id: &str,
    timestamp: &str,
    signatures: &str,
    body: &[u8],
    now: OffsetDateTime,
) -> Result<(), Refusal> {
    // `parse` would take a plus sign; the scheme has digits only.
    if !timestamp.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::BadTimestamp);
    }
    let sent: i64 = timestamp.parse().map_err(|_| Refusal::BadTimestamp)?;
    let now = now.unix_timestamp();
    if now.abs_diff(sent) > TOLERANCE_SECS {
        return Err(if sent < now { Refusal::TooOld } else { Refusal::TooNew });
    }
    let mut any = false;
    let mut given = [[0_u8; 32]; MOST_SIGNATURES];
    let mut count = 0;
    for text in signatures.split(' ').filter_map(|entry| entry.strip_prefix("v1,")).take(MOST_SIGNATURES) {
        // The decoder wants room for its estimate, which is a little more than 32.
        let mut room = [0_u8; 64];
        if text.len() <= 44 && BASE64.decode_slice(text, &mut room) == Ok(32) {
            given[count].copy_from_slice(&room[..32]);
            count += 1;
        }
    }
    if count == 0 {
        return Err(Refusal::NoSignature);
    }
    for secret in secrets {
        let tag = secret.tag(id, timestamp, body);
        for signature in &given[..count] {
            any |= constant_time::verify_slices_are_equal(tag.as_ref(), signature).is_ok();
        }
    }
    if any { Ok(()) } else { Err(Refusal::Wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const SENT: &str = "1614265330";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNED: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    fn secret() -> Secret {
        Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap()
    }

    #[test]
    fn the_vector_of_the_scheme_is_believed_and_made() {
        assert_eq!(secret().sign(ID, SENT, BODY), SIGNED);
        assert_eq!(verify(&[secret()], ID, SENT, SIGNED, BODY, at(1614265330)), Ok(()));
    }

    type Case<'a> = (&'a str, &'a str, &'a str, &'a [u8], i64, Refusal);

    #[test]
    fn anything_else_is_refused() {
        let other = Secret::parse("AAECAwQFBgcICQoLDA0ODw").unwrap();
        let now = 1614265330;
        let cases: &[Case<'_>] = &[
            ("another id", "msg_x", SIGNED, BODY, now, Refusal::Wrong),
            ("another body", ID, SIGNED, b"{}", now, Refusal::Wrong),
            (
                "a lost byte",
                ID,
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1A==",
                BODY,
                now,
                Refusal::NoSignature,
            ),
            (
                "another scheme",
                ID,
                "v1a,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
                BODY,
                now,
                Refusal::NoSignature,
            ),
            ("nothing", ID, "", BODY, now, Refusal::NoSignature),
            ("too old", ID, SIGNED, BODY, now + 301, Refusal::TooOld),
            ("too new", ID, SIGNED, BODY, now - 301, Refusal::TooNew),
        ];
        for (name, id, signature, body, now, refusal) in cases {
            assert_eq!(verify(&[secret()], id, SENT, signature, body, at(*now)), Err(*refusal), "{name}");
        }
        for timestamp in ["", "+1614265330", "-1", "1614265330.0", "99999999999999999999", " 1614265330"] {
            assert_eq!(
                verify(&[secret()], ID, timestamp, SIGNED, BODY, at(now)),
                Err(Refusal::BadTimestamp),
                "{timestamp:?}"
            );
        }
        assert_eq!(verify(&[other], ID, SENT, SIGNED, BODY, at(now)), Err(Refusal::Wrong));
        assert_eq!(verify(&[], ID, SENT, SIGNED, BODY, at(now)), Err(Refusal::Wrong));
    }

    #[test]
    fn rotation_works_from_either_end_and_the_tolerance_is_inclusive() {
        let new = Secret::parse("whsec_AAECAwQFBgcICQoLDA0ODw==").unwrap();
        let both = format!("{} v2,abc {SIGNED}", new.sign(ID, SENT, BODY));
        assert_eq!(verify(&[secret()], ID, SENT, &both, BODY, at(1614265330 + 300)), Ok(()));
        assert_eq!(verify(&[new, secret()], ID, SENT, SIGNED, BODY, at(1614265330 - 300)), Ok(()));
    }

    #[test]
    fn secrets_must_be_long_base64() {
        assert_eq!(Secret::parse("whsec_AAECAwQFBgcICQoLDA0O").unwrap_err(), SecretError::TooShort);
        assert_eq!(Secret::parse("whsec_").unwrap_err(), SecretError::TooShort);
        assert_eq!(Secret::parse("whsec_not base64 at all").unwrap_err(), SecretError::NotBase64);
        assert_eq!(format!("{:?}", secret()), "Secret");
    }

    /// RFC 4231, test case 2: that the primitive under the scheme is what it says.
    #[test]
    fn the_primitive_is_hmac_sha256() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"Jefe");
        let tag = hmac::sign(&key, b"what do ya want for nothing?");
        let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
