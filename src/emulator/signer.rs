//! The keys that sign tokens, as Entra ID keeps them: several at a time, rolled over without notice, published by a key
//! service that can be ordered to fail in each of the ways that matter.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::Context;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::world::{Caller, Person};

/// How the key service behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum KeyService {
    /// It serves.
    #[default]
    Up,
    /// Discovery and keys answer 503.
    Down,
    /// Discovery works, the keys answer 503.
    KeysDown,
    /// The keys are a page that says sorry.
    Garbage,
    /// The key document holds no key.
    Empty,
    /// The key document is larger than anybody should read.
    Giant,
    /// The discovery document names keys on a host that is not the login host.
    OtherHost,
}

impl KeyService {
    const ALL: [(&'static str, KeyService); 7] = [
        ("up", KeyService::Up),
        ("down", KeyService::Down),
        ("keys-down", KeyService::KeysDown),
        ("garbage", KeyService::Garbage),
        ("empty", KeyService::Empty),
        ("giant", KeyService::Giant),
        ("other-host", KeyService::OtherHost),
    ];
}

/// Signs tokens, and knows its own again.
pub(crate) struct Signer {
    state: Mutex<State>,
    /// A key that was never anybody's, made when a forgery first needs one.
    stranger: OnceLock<SigningKey>,
}

struct State {
    /// The last one signs.
    keys: Vec<SigningKey>,
    service: KeyService,
}

/// One key with all its forms.
#[derive(Clone)]
pub(super) struct SigningKey {
    pub(super) kid: String,
    pub(super) encoding: EncodingKey,
    /// The public key as a certificate has it: what an HMAC would be made with by somebody who hopes that the receiver
    /// does the same.
    pub(super) public_der: Vec<u8>,
    pub(super) modulus: String,
    pub(super) exponent: String,
    decoding: DecodingKey,
    published: bool,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    iss: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    appid: String,
    appidacr: String,
    idtyp: String,
    oid: String,
    sub: String,
    tid: String,
    ver: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    upn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    roles: Option<Vec<String>>,
}

impl SigningKey {
    /// Makes a key.
    pub(super) fn new(kid: String) -> anyhow::Result<Self> {
        let pair = KeyPair::generate(KeySize::Rsa2048).ok().context("no RSA key could be made")?;
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).ok().context("the key has no form")?;
        // PKCS#8 is what this library gives; the token library reads it as PEM only.
        let begin = "-----BEGIN PRIVATE KEY-----";
        let pem = format!("{begin}\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()));
        let encoding = EncodingKey::from_rsa_pem(pem.as_bytes())?;
        let public = pair.public_key();
        let public_der = AsDer::<PublicKeyX509Der<'_>>::as_der(public).ok().context("the key has no form")?;
        let modulus = URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero());
        let exponent = URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero());
        let decoding = DecodingKey::from_rsa_components(&modulus, &exponent)?;
        let public_der = public_der.as_ref().to_vec();
        Ok(Self { kid, encoding, public_der, modulus, exponent, decoding, published: true })
    }
}

impl Signer {
    /// Makes the first key.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let keys = vec![SigningKey::new("lockstep-emulator-1".to_owned())?];
        Ok(Self { state: Mutex::new(State { keys, service: KeyService::Up }), stranger: OnceLock::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the key service behaves.
    pub(crate) fn service(&self) -> KeyService {
        self.state().service
    }

    /// Orders how it shall behave. The error names what is possible.
    pub(crate) fn order(&self, name: &str) -> Result<(), String> {
        let Some((_, service)) = KeyService::ALL.iter().find(|(known, _)| *known == name) else {
            let names = KeyService::ALL.map(|(name, _)| name).join(" or ");
            return Err(format!("service can be {names}, not {name:?}"));
        };
        self.state().service = *service;
        Ok(())
    }

    /// For the control listener.
    pub(crate) fn describe(&self) -> Value {
        let state = self.state();
        let service = KeyService::ALL.iter().find(|(_, service)| *service == state.service);
        let kids = |published| {
            let chosen = state.keys.iter().filter(move |key| key.published == published);
            chosen.map(|key| key.kid.as_str()).collect::<Vec<_>>()
        };
        json!({
            "service": service.map(|(name, _)| *name), "published": kids(true), "retired": kids(false),
            "signing": state.keys.last().map(|key| &key.kid),
        })
    }

    /// Signs with a new key from now on. The old ones stay published, or go at once, as in an emergency.
    pub(crate) fn roll_over(&self, keep_old: bool) -> anyhow::Result<()> {
        let number = self.state().keys.len() + 1;
        let key = SigningKey::new(format!("lockstep-emulator-{number}"))?;
        let mut state = self.state();
        for old in &mut state.keys {
            old.published &= keep_old;
        }
        state.keys.push(key);
        Ok(())
    }

    /// The published keys, as the key document has them.
    pub(crate) fn published(&self, issuer: Option<&str>) -> Vec<Value> {
        let state = self.state();
        let published = state.keys.iter().filter(|key| key.published).map(|key| {
            let SigningKey { kid, modulus, exponent, .. } = key;
            let mut document = json!({
                "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "x5t": kid, "n": modulus, "e": exponent,
            });
            if let Some(issuer) = issuer {
                document["issuer"] = issuer.into();
            }
            document
        });
        // The newest first: their order means nothing.
        published.rev().collect()
    }

    /// The key that signs now.
    pub(super) fn current(&self) -> anyhow::Result<SigningKey> {
        self.state().keys.last().cloned().context("there is no key")
    }

    /// The newest key that is not published any more.
    pub(super) fn retired(&self) -> Option<SigningKey> {
        self.state().keys.iter().rev().find(|key| !key.published).cloned()
    }

    /// A key that no document ever names.
    pub(super) fn stranger(&self) -> anyhow::Result<&SigningKey> {
        if self.stranger.get().is_none() {
            // Two at once make two, of which one is kept.
            let _ = self.stranger.set(SigningKey::new("stranger".to_owned())?);
        }
        self.stranger.get().context("there is no key")
    }

    /// A token for an application, or for a person who uses one.
    pub(crate) fn token(
        &self,
        tenant_id: &str,
        app_id: &str,
        user: Option<&Person>,
        audience: &str,
        life: i64,
        now: OffsetDateTime,
    ) -> anyhow::Result<String> {
        let now = now.unix_timestamp();
        let object_id = match user {
            Some(person) => person.object_id.clone(),
            None => principal(tenant_id, app_id),
        };
        let claims = Claims {
            aud: audience.to_owned(),
            iss: format!("https://sts.windows.net/{tenant_id}/"),
            iat: now.min(now + life),
            nbf: now.min(now + life) - 300,
            exp: now + life,
            appid: app_id.to_owned(),
            appidacr: "1".to_owned(),
            idtyp: if user.is_some() { "user" } else { "app" }.to_owned(),
            oid: object_id.clone(),
            sub: object_id,
            tid: tenant_id.to_owned(),
            ver: "1.0".to_owned(),
            upn: user.map(|person| person.upn.clone()),
            name: user.map(|person| person.display_name.clone()),
            roles: user.is_none().then(|| {
                vec!["SecurityIncident.ReadWrite.All".to_owned(), "SecurityAlert.ReadWrite.All".to_owned()]
            }),
        };
        let key = self.current()?;
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(key.kid);
        Ok(jsonwebtoken::encode(&header, &claims, &key.encoding)?)
    }

    /// Who a token stands for. The error is a word: `expired`, `audience`, or another. The services know every key that
    /// there ever was: it is the receivers of tokens who have to look them up.
    pub(crate) fn verify(
        &self,
        token: &str,
        audiences: &[&str],
        now: OffsetDateTime,
    ) -> Result<Caller, &'static str> {
        let mut validation = Validation::new(Algorithm::RS256);
        validation.validate_aud = false;
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        let kid = jsonwebtoken::decode_header(token).ok().and_then(|header| header.kid).ok_or("signature")?;
        let decoding = {
            let state = self.state();
            let key = state.keys.iter().find(|key| key.kid == kid).ok_or("signature")?;
            key.decoding.clone()
        };
        let claims = jsonwebtoken::decode::<Claims>(token, &decoding, &validation);
        let claims = claims.map_err(|_| "signature")?.claims;
        if claims.exp <= now.unix_timestamp() {
            return Err("expired");
        }
        let audience = claims.aud.trim_end_matches('/');
        if !audiences.iter().any(|known| known.trim_end_matches('/').eq_ignore_ascii_case(audience)) {
            return Err("audience");
        }
        let user = claims.upn.map(|upn| Person {
            object_id: claims.oid.clone(),
            display_name: claims.name.unwrap_or_else(|| upn.clone()),
            upn,
        });
        Ok(Caller { tenant_id: claims.tid, app_id: claims.appid, object_id: claims.oid, user })
    }
}

/// The object id of an application in a tenant.
pub(super) fn principal(tenant_id: &str, app_id: &str) -> String {
    let seed = format!("principal:{tenant_id}:{}", app_id.to_lowercase());
    Uuid::new_v5(&Uuid::NAMESPACE_URL, seed.as_bytes()).to_string()
}
