//! Notifications that bring the resource along, encrypted for us (`graph.md` §13.8): which private key, whether the data
//! is what was signed, and what it says. Pure: keys and bodies are arguments.
//!
//! Whoever sends a forged item must learn nothing from us but that it did not open. So there is one error for all that
//! can be wrong with it, the signature is checked before anything is decrypted, and a key that does not unwrap is
//! replaced by one that signs nothing, so that a wrong padding takes the same way as a wrong signature.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::cipher::{AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The longest id that Graph keeps for a certificate (`graph.md` §13.2).
pub const LONGEST_ID: usize = 128;
/// The largest data that is opened, in base64. Graph itself sends no notification of this size.
const MOST_DATA: usize = 4 << 20;
/// What Graph takes as a certificate's key, in bits.
const KEY_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;
/// AES-256.
const KEY: usize = 32;
/// The block of AES, and its initialisation vector.
const BLOCK: usize = 16;
/// HMAC-SHA-256.
const SIGNATURE: usize = 32;

/// What an item brings along, as it came: base64, except for the id.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The encrypted resource.
    pub data: String,
    /// The signature over the decoded `data`.
    pub data_signature: String,
    /// The symmetric key, encrypted for our certificate.
    pub data_key: String,
    /// Which of our certificates.
    pub certificate_id: String,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("certificate_id", &self.certificate_id).finish_non_exhaustive()
    }
}

/// The item did not open. Why not is nobody's business: it would help whoever tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the encrypted content does not open")]
pub struct Unopened;

/// Why a certificate and its key cannot be used. Says nothing of what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The id is empty or too long for Graph.
    #[error("the certificate's id must have 1 to {LONGEST_ID} characters")]
    Id,
    /// There is no certificate.
    #[error("holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// There is no private key that can be read.
    #[error("holds no RSA private key in PEM form (-----BEGIN PRIVATE KEY-----), unencrypted")]
    NoKey,
    /// Graph takes keys of 2,048 to 4,096 bits.
    #[error("the RSA key must have 2048 to 4096 bits")]
    Size,
    /// The certificate is of another key.
    #[error("the certificate is not that of the private key")]
    Mismatch,
}

/// A certificate of ours with its private key.
pub struct RichKey {
    id: String,
    certificate: Vec<u8>,
    private: OaepPrivateDecryptingKey,
}

impl fmt::Debug for RichKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RichKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl RichKey {
    /// Reads PEM. One text may hold both; of a chain the first certificate counts.
    pub fn from_pem(id: &str, certificate: &str, key: &str) -> Result<Self, KeyError> {
        if !(1..=LONGEST_ID).contains(&id.len()) {
            return Err(KeyError::Id);
        }
        let certificate = pem(certificate, "CERTIFICATE").ok_or(KeyError::NoCertificate)?;
        let pkcs8 = match pem(key, "PRIVATE KEY") {
            Some(pkcs8) => pkcs8,
            None => from_pkcs1(&pem(key, "RSA PRIVATE KEY").ok_or(KeyError::NoKey)?),
        };
        let private = PrivateDecryptingKey::from_pkcs8(&pkcs8).map_err(|_| KeyError::NoKey)?;
        if !KEY_BITS.contains(&private.key_size_bits()) {
            return Err(KeyError::Size);
        }
        let public: PublicKeyX509Der<'_> = private.public_key().as_der().map_err(|_| KeyError::NoKey)?;
        let public = public.as_ref();
        // A certificate carries its public key in this very form.
        if !certificate.windows(public.len()).any(|window| window == public) {
            return Err(KeyError::Mismatch);
        }
        let private = OaepPrivateDecryptingKey::new(private).map_err(|_| KeyError::NoKey)?;
        Ok(Self { id: id.to_owned(), certificate, private })
    }

    /// Under which id Graph knows the certificate.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `encryptionCertificate`: the certificate's DER in base64.
    pub fn certificate(&self) -> String {
        STANDARD.encode(&self.certificate)
    }

    /// The symmetric key and whether there was one. Without one it is a key that nobody used, so that what follows takes
    /// as long.
    fn unwrap(&self, wrapped: &[u8]) -> ([u8; KEY], bool) {
        let mut room = vec![0; self.private.min_output_size()];
        let unwrapped = self.private.decrypt(&OAEP_SHA1_MGF1SHA1, wrapped, &mut room, None);
        match unwrapped.ok().and_then(|key| <[u8; KEY]>::try_from(&*key).ok()) {
            Some(key) => (key, true),
            None => ([0; KEY], false),
        }
    }
}

/// All certificates of a tenant's subscriptions: the newest is the last, and goes into new subscriptions; those before
/// it open what still comes for them.
#[derive(Clone, Debug, Default)]
pub struct RichKeys {
    keys: Vec<Arc<RichKey>>,
}

impl RichKeys {
    /// The newest comes last.
    pub fn new(keys: Vec<Arc<RichKey>>) -> Self {
        Self { keys }
    }

    /// The certificate for new subscriptions.
    pub fn newest(&self) -> Option<&RichKey> {
        self.keys.last().map(Arc::as_ref)
    }

    /// The certificate of this id.
    pub fn get(&self, id: &str) -> Option<&RichKey> {
        self.keys.iter().find(|key| key.id == id).map(Arc::as_ref)
    }

    /// The resource, if the item is whole and was made for one of our certificates.
    pub fn open(&self, sealed: &Sealed) -> Result<Vec<u8>, Unopened> {
        let Sealed { data, data_signature, data_key, certificate_id } = sealed;
        let key = self.get(certificate_id).ok_or(Unopened)?;
        let decode = |text: &str, most: usize| match text.len() <= most {
            true => STANDARD.decode(text).map_err(|_| Unopened),
            false => Err(Unopened),
        };
        let mut data = decode(data, MOST_DATA)?;
        let signature = decode(data_signature, 64)?;
        let wrapped = decode(data_key, 1024)?;
        if data.is_empty()
            || !data.len().is_multiple_of(BLOCK)
            || signature.len() != SIGNATURE
            || wrapped.len() != key.private.key_size_bytes()
        {
            return Err(Unopened);
        }
        let (symmetric, unwrapped) = key.unwrap(&wrapped);
        let signed = hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &symmetric), &data, &signature).is_ok();
        if !(unwrapped & signed) {
            return Err(Unopened);
        }
        let mut iv = [0; BLOCK];
        iv.copy_from_slice(&symmetric[..BLOCK]);
        let cipher = UnboundCipherKey::new(&AES_256, &symmetric)
            .and_then(PaddedBlockDecryptingKey::cbc_pkcs7)
            .map_err(|_| Unopened)?;
        let plain = cipher.decrypt(&mut data, DecryptionContext::Iv128(FixedLength::from(iv)));
        let length = plain.map_err(|_| Unopened)?.len();
        data.truncate(length);
        Ok(data)
    }
}

/// The first block of this label.
fn pem(text: &str, label: &str) -> Option<Vec<u8>> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let inside = text.split_once(&begin)?.1.split_once(&end)?.0;
    let inside: String = inside.split_whitespace().collect();
    STANDARD.decode(inside).ok()
}

/// The wrapping of PKCS#8 around a key of PKCS#1: version 0, rsaEncryption, the key.
fn from_pkcs1(key: &[u8]) -> Vec<u8> {
    const HEAD: [u8; 18] = [
        0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05,
        0x00,
    ];
    let inside = [&HEAD[..], &tagged(0x04, key)].concat();
    tagged(0x30, &inside)
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            // At most eight bytes, so the count fits.
            out.push(0x80 | significant.len() as u8);
            out.extend_from_slice(significant);
        }
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::cipher::{EncryptionContext, PaddedBlockEncryptingKey};
    use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPublicEncryptingKey};
    use serde_json::Value;

    use super::*;

    const CERTIFICATES: [&str; 2] = [
        include_str!("../../tests/fixtures/vectors/rich-cert-1.pem"),
        include_str!("../../tests/fixtures/vectors/rich-cert-2.pem"),
    ];
    const KEYS: [&str; 2] = [
        include_str!("../../tests/fixtures/vectors/rich-key-1.pkcs8.der.base64.txt"),
        include_str!("../../tests/fixtures/vectors/rich-key-2.pkcs8.der.base64.txt"),
    ];
    const NOTIFICATION: &str = include_str!("../../tests/fixtures/vectors/rich-notification.json");
    const TAMPERED: &str = include_str!("../../tests/fixtures/vectors/rich-notification-tampered.json");
    const EXPECTED: &str = include_str!("../../tests/fixtures/vectors/rich-expected.json");

    fn in_pem(base64: &str) -> String {
        format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n")
    }

    fn key(number: usize) -> Arc<RichKey> {
        let id = format!("bridge-cert-{}", number + 1);
        Arc::new(RichKey::from_pem(&id, CERTIFICATES[number], &in_pem(KEYS[number])).unwrap())
    }

    fn keys() -> RichKeys {
        RichKeys::new(vec![key(0), key(1)])
    }

    fn sealed(item: &Value) -> Sealed {
        let text = |name: &str| item["encryptedContent"][name].as_str().unwrap().to_owned();
        Sealed {
            data: text("data"),
            data_signature: text("dataSignature"),
            data_key: text("dataKey"),
            certificate_id: text("encryptionCertificateId"),
        }
    }

    /// An item as a sender makes it that may do each step its own way.
    struct Sender {
        wrapped: Vec<u8>,
        label: Option<&'static [u8]>,
        oaep: &'static OaepAlgorithm,
        plain: Vec<u8>,
        /// Encrypted as it is: the padding is its own.
        padded: bool,
        iv: [u8; 16],
        signs_with: Vec<u8>,
    }

    impl Default for Sender {
        fn default() -> Self {
            let symmetric: Vec<u8> = (7..39).collect();
            let mut iv = [0; 16];
            iv.copy_from_slice(&symmetric[..16]);
            let plain = br#"{"id":"1"}"#.to_vec();
            Self {
                wrapped: symmetric.clone(),
                label: None,
                oaep: &OAEP_SHA1_MGF1SHA1,
                plain,
                padded: true,
                iv,
                signs_with: symmetric,
            }
        }
    }

    impl Sender {
        fn seal(self) -> Sealed {
            let pkcs8 = STANDARD.decode(KEYS[0].split_whitespace().collect::<String>()).unwrap();
            let public = PrivateDecryptingKey::from_pkcs8(&pkcs8).unwrap().public_key();
            let public = OaepPublicEncryptingKey::new(public).unwrap();
            let mut room = vec![0; public.ciphertext_size()];
            let wrapped = public.encrypt(self.oaep, &self.wrapped, &mut room, self.label).unwrap();
            let cipher = UnboundCipherKey::new(&AES_256, &(7..39).collect::<Vec<u8>>()).unwrap();
            let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(cipher).unwrap();
            let mut data = self.plain;
            let whole = data.len();
            let iv = EncryptionContext::Iv128(FixedLength::from(self.iv));
            cipher.less_safe_encrypt(&mut data, iv).unwrap();
            if !self.padded {
                data.truncate(whole);
            }
            let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.signs_with), &data);
            Sealed {
                data: STANDARD.encode(&data),
                data_signature: STANDARD.encode(signature.as_ref()),
                data_key: STANDARD.encode(wrapped),
                certificate_id: "bridge-cert-1".to_owned(),
            }
        }
    }

    #[test]
    fn the_published_vectors_open() {
        let notification: Value = serde_json::from_str(NOTIFICATION).unwrap();
        let expected: Value = serde_json::from_str(EXPECTED).unwrap();
        for (item, expected) in
            notification["value"].as_array().unwrap().iter().zip(expected["items"].as_array().unwrap())
        {
            let plain = keys().open(&sealed(item)).unwrap();
            assert_eq!(std::str::from_utf8(&plain).unwrap(), expected["plaintext"].as_str().unwrap());
        }
        let tampered: Value = serde_json::from_str(TAMPERED).unwrap();
        assert_eq!(keys().open(&sealed(&tampered["value"][0])), Err(Unopened));
    }

    #[test]
    fn what_a_sender_may_do_otherwise_is_refused_with_one_word() {
        let genuine = Sender::default().seal();
        assert_eq!(keys().open(&genuine).unwrap(), br#"{"id":"1"}"#);
        for length in [0, 1, 15, 16, 17, 32, 33] {
            let plain = vec![b'x'; length];
            let whole = Sender { plain: plain.clone(), ..Sender::default() }.seal();
            assert_eq!(keys().open(&whole).unwrap(), plain, "{length} bytes");
        }
        // The symmetric key: a label, another hash, and every length but 32.
        let mut wrong = vec![
            ("label", Sender { label: Some(b"label"), ..Sender::default() }.seal()),
            ("hash", Sender { oaep: &OAEP_SHA256_MGF1SHA256, ..Sender::default() }.seal()),
        ];
        for length in [0, 1, 16, 24, 31, 33, 64] {
            let short: Vec<u8> = vec![7; length];
            let sender = Sender { wrapped: short.clone(), signs_with: short, ..Sender::default() };
            wrong.push(("length", sender.seal()));
        }
        // What stands in for a key that does not unwrap must sign nothing.
        let stand_in = Sender { label: Some(b"label"), signs_with: vec![0; 32], ..Sender::default() };
        wrong.push(("stand-in", stand_in.seal()));
        wrong.push(("signature", Sender { signs_with: vec![1; 32], ..Sender::default() }.seal()));
        // PKCS#7 as Wycheproof spoils it, under a good signature.
        for (name, ending) in [
            ("padding 0", vec![0; 16]),
            ("padding 17", vec![17; 16]),
            ("padding 255", vec![255; 16]),
            ("padding uneven", [vec![b'x'; 12], vec![3, 4, 4, 4]].concat()),
            ("padding of one side", [vec![b'x'; 14], vec![1, 2]].concat()),
            ("no padding", vec![b'x'; 16]),
        ] {
            let plain = [vec![b'a'; 16], ending].concat();
            wrong.push((name, Sender { plain, padded: false, ..Sender::default() }.seal()));
        }
        // The envelope.
        let with = |change: &dyn Fn(&mut Sealed)| {
            let mut sealed = genuine.clone();
            change(&mut sealed);
            sealed
        };
        let bytes = |text: &str| STANDARD.decode(text).unwrap();
        let flipped = |text: &str, at: usize| {
            let mut bytes = bytes(text);
            bytes[at] ^= 1;
            STANDARD.encode(bytes)
        };
        wrong.extend([
            ("certificate", with(&|sealed| sealed.certificate_id = "bridge-cert-2".into())),
            ("unknown certificate", with(&|sealed| sealed.certificate_id = "another".into())),
            ("no data", with(&|sealed| sealed.data.clear())),
            ("half a block", with(&|sealed| sealed.data = STANDARD.encode([7; 8]))),
            ("a flipped bit", with(&|sealed| sealed.data = flipped(&genuine.data, 0))),
            ("not base64", with(&|sealed| sealed.data.insert(0, '!'))),
            ("url base64", with(&|sealed| sealed.data_key = sealed.data_key.replace(['+', '/'], "-"))),
            ("too much data", with(&|sealed| sealed.data = "A".repeat(MOST_DATA + 4))),
            ("no signature", with(&|sealed| sealed.data_signature.clear())),
            (
                "cut signature",
                with(&|sealed| {
                    sealed.data_signature = STANDARD.encode(&bytes(&genuine.data_signature)[..16]);
                }),
            ),
            ("flipped signature", with(&|s| s.data_signature = flipped(&genuine.data_signature, 31))),
            ("no key", with(&|sealed| sealed.data_key.clear())),
            ("cut key", with(&|s| s.data_key = STANDARD.encode(&bytes(&genuine.data_key)[1..]))),
            ("key of zeros", with(&|sealed| sealed.data_key = STANDARD.encode([0; 256]))),
            ("key above the modulus", with(&|sealed| sealed.data_key = STANDARD.encode([255; 256]))),
            ("flipped key", with(&|sealed| sealed.data_key = flipped(&genuine.data_key, 255))),
        ]);
        for (name, sealed) in wrong {
            assert_eq!(keys().open(&sealed), Err(Unopened), "{name}");
        }
    }

    #[test]
    fn a_key_is_read_in_either_form_and_only_with_its_own_certificate() {
        let pkcs8 = STANDARD.decode(KEYS[0].split_whitespace().collect::<String>()).unwrap();
        // The inside of PKCS#8's octet string is PKCS#1: after the two heads of four bytes, and what lies between.
        let pkcs1 = STANDARD.encode(&pkcs8[4 + 18 + 4..]);
        let old = format!("-----BEGIN RSA PRIVATE KEY-----\n{pkcs1}\n-----END RSA PRIVATE KEY-----");
        let read = RichKey::from_pem("bridge-cert-1", CERTIFICATES[0], &old).unwrap();
        assert!(RichKeys::new(vec![Arc::new(read)]).open(&Sender::default().seal()).is_ok());
        let published =
            include_str!("../../tests/fixtures/vectors/rich-cert-1.encryptionCertificate.txt").trim();
        assert_eq!(key(0).certificate(), published);
        let wrong = |id: &str, certificate: &str, key: &str| {
            RichKey::from_pem(id, certificate, key).map(|_| ()).unwrap_err()
        };
        assert_eq!(wrong("a", CERTIFICATES[1], &in_pem(KEYS[0])), KeyError::Mismatch);
        assert_eq!(wrong("a", CERTIFICATES[0], "nothing"), KeyError::NoKey);
        assert_eq!(wrong("a", "nothing", &in_pem(KEYS[0])), KeyError::NoCertificate);
        assert_eq!(wrong("", CERTIFICATES[0], &in_pem(KEYS[0])), KeyError::Id);
        assert_eq!(wrong(&"a".repeat(129), CERTIFICATES[0], &in_pem(KEYS[0])), KeyError::Id);
        assert_eq!(keys().newest().unwrap().id(), "bridge-cert-2");
        assert!(!format!("{:?}", keys()).contains("BEGIN"));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, ..Default::default() })]

        /// Nobody without the private key's other half gets anything but the one word, and nothing stops the process.
        #[test]
        fn whatever_is_sent_does_not_open(
            data in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
            signature in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40),
            wrapped in proptest::collection::vec(proptest::prelude::any::<u8>(), 250..260),
            text in ".{0,40}",
            plain in proptest::prelude::any::<[bool; 3]>(),
        ) {
            let member = |bytes: &[u8], plain: bool| if plain { text.clone() } else { STANDARD.encode(bytes) };
            let sealed = Sealed {
                data: member(&data, plain[0]),
                data_signature: member(&signature, plain[1]),
                data_key: member(&wrapped, plain[2]),
                certificate_id: "bridge-cert-1".to_owned(),
            };
            proptest::prop_assert_eq!(keys().open(&sealed), Err(Unopened));
            // Nor does anything that is no notification stop its reader.
            let _ = crate::domain::notice::graph(&data);
            let _ = crate::domain::notice::opened(&crate::domain::notice::About::Other, text.as_bytes());
            let _ = RichKey::from_pem("a", &text, &text);
        }
    }
}
