//! What Graph does with a resource that goes along with a notification: encrypts it for the subscription's certificate
//! (`graph.md` §13.8). Written apart from the code that opens it, so that each proves the other.

use aws_lc_rs::cipher::{AES_256, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand;
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// `encryptedContent` for a certificate as a subscription holds it: DER in base64. The error says what is wrong with
/// the certificate.
pub fn seal(certificate: &str, certificate_id: &str, resource: &[u8]) -> Result<Value, &'static str> {
    let der = STANDARD.decode(certificate).map_err(|_| "is not base64")?;
    let public = public_key(&der).ok_or("is no X.509 certificate with an RSA key")?;
    let public = PublicEncryptingKey::from_der(&public).map_err(|_| "is no certificate with an RSA key")?;
    if !(2048..=4096).contains(&public.key_size_bits()) {
        return Err("must have a key of 2048 to 4096 bits");
    }
    sealed(public, &der, certificate_id, resource, true)
}

/// As [`seal`], but encrypted as it is and filled up with what is no padding.
pub(crate) fn seal_unpadded(
    certificate: &str,
    certificate_id: &str,
    resource: &[u8],
) -> Result<Value, &'static str> {
    let der = STANDARD.decode(certificate).map_err(|_| "is not base64")?;
    let public = public_key(&der).and_then(|key| PublicEncryptingKey::from_der(&key).ok());
    let mut resource = resource.to_vec();
    resource.resize(resource.len().next_multiple_of(16), b' ');
    sealed(public.ok_or("is no certificate with an RSA key")?, &der, certificate_id, &resource, false)
}

/// As [`seal`], for a key that nobody has.
pub(crate) fn seal_for_stranger(certificate_id: &str, resource: &[u8]) -> Result<Value, &'static str> {
    let stranger = PrivateDecryptingKey::generate(KeySize::Rsa2048).map_err(|_| "cannot be made")?;
    sealed(stranger.public_key(), b"a stranger's", certificate_id, resource, true)
}

/// The same bytes with one bit changed.
pub(crate) fn tampered(base64: &str) -> String {
    let mut bytes = STANDARD.decode(base64).unwrap_or_default();
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    STANDARD.encode(bytes)
}

fn sealed(
    public: PublicEncryptingKey,
    der: &[u8],
    certificate_id: &str,
    resource: &[u8],
    padded: bool,
) -> Result<Value, &'static str> {
    let failed = |_| "cannot be used to encrypt";
    let mut key = [0; 32];
    rand::fill(&mut key).map_err(failed)?;
    let public = OaepPublicEncryptingKey::new(public).map_err(failed)?;
    let mut room = vec![0; public.ciphertext_size()];
    let wrapped = public.encrypt(&OAEP_SHA1_MGF1SHA1, &key, &mut room, None).map_err(failed)?;
    let mut iv = [0; 16];
    iv.copy_from_slice(&key[..16]);
    let cipher = UnboundCipherKey::new(&AES_256, &key).map_err(failed)?;
    let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(cipher).map_err(failed)?;
    let mut data = resource.to_vec();
    let context = EncryptionContext::Iv128(FixedLength::from(iv));
    cipher.less_safe_encrypt(&mut data, context).map_err(failed)?;
    if !padded {
        data.truncate(resource.len());
    }
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &data);
    let print = digest(&SHA1_FOR_LEGACY_USE_ONLY, der);
    let thumbprint: String = print.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    Ok(json!({
        "data": STANDARD.encode(&data),
        "dataSignature": STANDARD.encode(signature.as_ref()),
        "dataKey": STANDARD.encode(wrapped),
        "encryptionCertificateId": certificate_id,
        "encryptionCertificateThumbprint": thumbprint,
    }))
}

/// `subjectPublicKeyInfo`, the seventh member of what a certificate of version 3 signs.
fn public_key(certificate: &[u8]) -> Option<Vec<u8>> {
    let (0x30, whole, _) = element(certificate)? else { return None };
    let (0x30, mut rest, _) = element(whole)? else { return None };
    for _ in 0..6 {
        rest = element(rest)?.2;
    }
    let (0x30, _, after) = element(rest)? else { return None };
    Some(rest[..rest.len() - after.len()].to_vec())
}

/// Tag, content and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        short if short < 0x80 => (usize::from(short), rest),
        long => {
            let (bytes, rest) = rest.split_at_checked(usize::from(long & 0x7f).min(5))?;
            let length = bytes.iter().fold(0_usize, |length, byte| (length << 8) | usize::from(*byte));
            (length, rest)
        }
    };
    let (content, after) = rest.split_at_checked(length)?;
    Some((tag, content, after))
}
