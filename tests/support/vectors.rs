//! The key pairs of the published vectors of encrypted notifications. They protect nothing.

/// A certificate and its private key, both as PEM. There are two.
pub(crate) fn pair(number: usize) -> (&'static str, String) {
    let (certificate, key) = match number {
        1 => (
            include_str!("../fixtures/vectors/rich-cert-1.pem"),
            include_str!("../fixtures/vectors/rich-key-1.pkcs8.der.base64.txt"),
        ),
        _ => (
            include_str!("../fixtures/vectors/rich-cert-2.pem"),
            include_str!("../fixtures/vectors/rich-key-2.pkcs8.der.base64.txt"),
        ),
    };
    (certificate, format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----"))
}
