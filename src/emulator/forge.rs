//! Tokens to order, for whoever tests a receiver: what each sender shows, and every forgery that a receiver must know.
//! Signed by the emulator's own keys, unless the signature is what is forged.

use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Hello;
use super::signer::{Signer, SigningKey, principal};

/// How long a managed identity's token lives, in seconds (`sentinel.md` §16.1).
const LIFE: i64 = 24 * 60 * 60;
/// Who nobody is.
const STRANGER: &str = "11111111-2222-3333-4444-555555555555";

/// Who shows the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Graph's change notifications: `validationTokens`.
    Graph,
    /// A playbook's managed identity.
    Playbook,
    /// An action group with a secure webhook.
    ActionGroup,
    /// Event Grid.
    EventGrid,
}

impl Sender {
    /// All of them, with the names that an order uses.
    pub const ALL: [(&'static str, Sender); 4] = [
        ("graph", Sender::Graph),
        ("playbook", Sender::Playbook),
        ("action-group", Sender::ActionGroup),
        ("event-grid", Sender::EventGrid),
    ];

    /// The application, and the app roles that its tokens carry.
    const fn shows(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Sender::Graph => ("0bf30f3b-4a52-48df-9a82-234910c4a086", &[]),
            Sender::Playbook => ("99999999-0000-4000-8000-000000000001", &["Bridge.Ingest"]),
            Sender::ActionGroup => ("461e8683-5575-4561-ac7f-899cc907d62a", &["ActionGroupsSecureWebhook"]),
            Sender::EventGrid => {
                ("4962773b-9cdb-44cf-a8bf-237846a00ab7", &["AzureEventGridSecureWebhookSubscriber"])
            }
        }
    }
}

/// One way in which a token can be wrong, or right.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// The name in an order.
    pub name: &'static str,
    /// What is wrong with it.
    pub meaning: &'static str,
}

const fn variant(name: &'static str, meaning: &'static str) -> Variant {
    Variant { name, meaning }
}

/// All of them. The first is genuine; what the others have in common is that no door may take them.
pub const VARIANTS: &[Variant] = &[
    variant("genuine", "as the service makes it"),
    variant("wrong-audience", "for another application"),
    variant("two-audiences", "for us and for another application"),
    variant("wrong-tenant", "of a tenant that exists nowhere: tid and iss agree"),
    variant("issuer-of-other-tenant", "iss is another tenant's, tid is right"),
    variant("issuer-not-entra", "iss is on a host that is not Entra's"),
    variant("issuer-of-other-version", "iss is that of the other version"),
    variant("unknown-version", "ver is 3.0"),
    variant("wrong-publisher", "of another application, with its own object id and without roles"),
    variant("no-publisher", "no appid and no azp, as in an identity token"),
    variant("publisher-of-other-version", "azp in a version 1 token, appid in a version 2 token"),
    variant("wrong-role", "of another principal with another role"),
    variant("no-role", "of another principal without a role"),
    variant("person", "a person's: scp instead of an app's idtyp"),
    variant("expired", "ended ten minutes ago"),
    variant("not-yet-valid", "begins in ten minutes"),
    variant("no-expiry", "exp is missing"),
    variant("dates-as-text", "exp and nbf are texts"),
    variant("dates-beyond-time", "exp is larger than any date"),
    variant("alg-none", "alg none, no signature"),
    variant("alg-none-signed", "alg none, with the signature of a genuine token"),
    variant("alg-lower-case", "alg rs256"),
    variant("hs256-public-key", "HS256 with our public key as the secret"),
    variant("rs512", "signed by our key with RS512"),
    variant("ps256", "signed by our key with PS256"),
    variant("unknown-kid", "signed by a key that is not published"),
    variant("retired-key", "signed by a key that a rollover took away"),
    variant("no-kid", "no kid"),
    variant("kid-path", "kid is a relative path"),
    variant("kid-url", "kid is an address"),
    variant("kid-giant", "kid has a thousand characters"),
    variant("stranger-key", "our kid, a stranger's signature"),
    variant("own-key", "brings the key that signed it as jwk"),
    variant("key-address", "names the address of the key that signed it as jku"),
    variant("wrong-typ", "typ is that of a logout token"),
    variant("critical", "demands an extension with crit"),
    variant("tampered-claims", "the claims were changed after signing"),
    variant("tampered-header", "the header was changed after signing"),
    variant("tampered-signature", "one bit of the signature was changed"),
    variant("cut-signature", "the signature lacks its last byte"),
    variant("duplicate-claim", "aud stands twice, signed"),
    variant("duplicate-header", "alg stands twice, signed"),
    variant("duplicate-deep", "a member of a nested object stands twice, signed"),
    variant("giant", "longer than any token of Entra's, signed"),
    variant("padded", "base64 with its padding, signed"),
    variant("two-parts", "no signature and no dot for it"),
    variant("four-parts", "one part too many"),
    variant("encrypted", "five parts, as an encrypted token has"),
    variant("not-json", "the claims are no JSON, signed"),
    variant("empty", "nothing"),
];

/// One order.
#[derive(Clone, Debug)]
pub struct Mint {
    /// Who shows it.
    pub sender: Sender,
    /// One of [`VARIANTS`].
    pub variant: &'static str,
    /// Version 2 instead of version 1.
    pub v2: bool,
    /// The tenant.
    pub tenant_id: String,
    /// For whom.
    pub audience: String,
    /// Another application than the sender's own.
    pub client_id: Option<String>,
    /// Another object id than the one that follows from tenant and application.
    pub object_id: Option<String>,
    /// Other roles than the sender's own.
    pub roles: Option<Vec<String>>,
    /// How long it lives, in seconds.
    pub life: i64,
    /// Laid over the claims before signing; null takes one out.
    pub claims: Map<String, Value>,
    /// Laid over the header before signing.
    pub header: Map<String, Value>,
}

impl Mint {
    /// A genuine token of version 1.
    pub fn new(sender: Sender, tenant_id: &str, audience: &str) -> Self {
        Self {
            sender,
            variant: VARIANTS[0].name,
            v2: false,
            tenant_id: tenant_id.to_owned(),
            audience: audience.to_owned(),
            client_id: None,
            object_id: None,
            roles: None,
            life: LIFE,
            claims: Map::new(),
            header: Map::new(),
        }
    }

    /// Reads an order: `{"sender", "variant", "version", "tenantId", "audience", "clientId", "objectId", "roles",
    /// "expiresIn", "claims", "header"}`, of which only `audience` is needed.
    pub fn read(order: &Value, hello: &Hello) -> Result<Self, String> {
        let text = |name: &str| match order.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(format!("{name} is a text")),
        };
        let object = |name: &str| match order.get(name) {
            None | Some(Value::Null) => Ok(Map::new()),
            Some(Value::Object(members)) => Ok(members.clone()),
            Some(_) => Err(format!("{name} is an object")),
        };
        let sender = text("sender")?.unwrap_or("playbook");
        let sender = Sender::ALL
            .iter()
            .find(|(name, _)| *name == sender)
            .ok_or_else(|| format!("sender can be {}", Sender::ALL.map(|(name, _)| name).join(" or ")))?;
        let variant = text("variant")?.unwrap_or(VARIANTS[0].name);
        let variant = VARIANTS
            .iter()
            .find(|known| known.name == variant)
            .ok_or_else(|| format!("there is no variant {variant:?}; GET /tokens/variants lists them"))?;
        let v2 = match text("version")?.unwrap_or("1.0") {
            "1.0" => false,
            "2.0" => true,
            _ => return Err("version can be 1.0 or 2.0".to_owned()),
        };
        let roles = match order.get("roles") {
            None | Some(Value::Null) => None,
            Some(list) => {
                let list = list.as_array().ok_or("roles is a list of texts")?;
                let texts: Option<Vec<String>> =
                    list.iter().map(|role| role.as_str().map(str::to_owned)).collect();
                Some(texts.ok_or("roles is a list of texts")?)
            }
        };
        let life = match order.get("expiresIn") {
            None | Some(Value::Null) => LIFE,
            Some(value) => value.as_i64().ok_or("expiresIn is a whole number of seconds")?,
        };
        Ok(Self {
            sender: sender.1,
            variant: variant.name,
            v2,
            tenant_id: text("tenantId")?.unwrap_or(&hello.tenant_id).to_lowercase(),
            audience: text("audience")?.ok_or("audience is missing: who the token is for")?.to_owned(),
            client_id: text("clientId")?.map(str::to_owned),
            object_id: text("objectId")?.map(str::to_owned),
            roles,
            life,
            claims: object("claims")?,
            header: object("header")?,
        })
    }

    /// Another variant of the same token.
    #[must_use]
    pub fn with(&self, variant: &Variant) -> Self {
        Self { variant: variant.name, ..self.clone() }
    }

    fn issuer(&self, v2: bool, tenant: &str, hello: &Hello) -> String {
        match v2 {
            true => format!("{}/{tenant}/v2.0", hello.login),
            false => format!("https://sts.windows.net/{tenant}/"),
        }
    }

    fn claims(&self, hello: &Hello, now: i64) -> Map<String, Value> {
        let (app, roles) = self.sender.shows();
        let app = self.client_id.as_deref().unwrap_or(app);
        let object = self.object_id.clone().unwrap_or_else(|| principal(&self.tenant_id, app));
        let issuer = self.issuer(self.v2, &self.tenant_id, hello);
        let mut claims = Map::new();
        let mut put = |name: &str, value: Value| claims.insert(name.to_owned(), value);
        put("aud", self.audience.clone().into());
        put("iss", issuer.clone().into());
        // Entra dates them back by five minutes.
        put("iat", now.min(now + self.life - 600).saturating_sub(300).into());
        put("nbf", now.min(now + self.life - 600).saturating_sub(300).into());
        put("exp", (now + self.life).into());
        put("aio", "42FgYExampleExample==".into());
        match self.v2 {
            true => {
                put("azp", app.into());
                put("azpacr", "2".into());
            }
            false => {
                put("appid", app.into());
                put("appidacr", "2".into());
                put("idp", issuer.into());
            }
        }
        put("oid", object.clone().into());
        put("sub", object.into());
        put("rh", "0.AAAA.".into());
        put("tid", self.tenant_id.clone().into());
        put("uti", Uuid::new_v4().simple().to_string().into());
        put("ver", if self.v2 { "2.0" } else { "1.0" }.into());
        match &self.roles {
            Some(roles) => put("roles", json!(roles)),
            None if roles.is_empty() => None,
            None => put("roles", json!(roles)),
        };
        lay_over(&mut claims, &self.claims);
        claims
    }
}

fn lay_over(members: &mut Map<String, Value>, over: &Map<String, Value>) {
    for (name, value) in over {
        match value {
            Value::Null => members.shift_remove(name),
            value => members.insert(name.clone(), value.clone()),
        };
    }
}

/// The first part, the second, and what stands between the dots of a token.
fn message(header: &str, claims: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

fn signed(message: &str, key: &EncodingKey, algorithm: Algorithm) -> anyhow::Result<String> {
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm)?;
    Ok(format!("{message}.{signature}"))
}

fn text_of(members: &Map<String, Value>) -> String {
    Value::Object(members.clone()).to_string()
}

impl Signer {
    /// Makes a token to order.
    pub(crate) fn mint(&self, order: &Mint, hello: &Hello, now: OffsetDateTime) -> anyhow::Result<String> {
        let mut key = self.current()?;
        let now = now.unix_timestamp();
        let mut claims = order.claims(hello, now);
        if order.variant == "retired-key" {
            if self.retired().is_none() {
                self.roll_over(false)?;
            }
            key = self.retired().unwrap_or(key);
        }
        let mut header = Map::from_iter([
            ("typ".to_owned(), Value::from("JWT")),
            ("alg".to_owned(), Value::from("RS256")),
            ("kid".to_owned(), Value::from(key.kid.clone())),
        ]);
        if !order.v2 {
            header.insert("x5t".to_owned(), key.kid.clone().into());
        }
        lay_over(&mut header, &order.header);
        let app = if order.v2 { "azp" } else { "appid" };
        let wrong = Forgery { order, hello, now, app, signer: self };
        wrong.claims(&mut claims);
        wrong.header(&mut header);
        wrong.sign(&key, &header, &claims)
    }
}

/// What an order makes wrong.
struct Forgery<'a> {
    order: &'a Mint,
    hello: &'a Hello,
    now: i64,
    /// The claim that names the application.
    app: &'static str,
    signer: &'a Signer,
}

impl Forgery<'_> {
    /// What is wrong and signed all the same: only Entra could make it, or somebody who holds another of its tokens.
    fn claims(&self, claims: &mut Map<String, Value>) {
        let Self { order, hello, now, app, .. } = *self;
        let mut set = |name: &str, value: Value| claims.insert(name.to_owned(), value);
        match order.variant {
            "wrong-audience" => drop(set("aud", STRANGER.into())),
            "two-audiences" => drop(set("aud", json!([order.audience, STRANGER]))),
            "wrong-tenant" => {
                set("tid", STRANGER.into());
                set("iss", order.issuer(order.v2, STRANGER, hello).into());
            }
            "issuer-of-other-tenant" => drop(set("iss", order.issuer(order.v2, STRANGER, hello).into())),
            "issuer-not-entra" => {
                set("iss", format!("https://sts.example/{}/", order.tenant_id).into());
            }
            "issuer-of-other-version" => {
                set("iss", order.issuer(!order.v2, &order.tenant_id, hello).into());
            }
            "unknown-version" => drop(set("ver", "3.0".into())),
            "wrong-publisher" => {
                set(app, STRANGER.into());
                set("oid", STRANGER.into());
                claims.shift_remove("roles");
            }
            "no-publisher" => drop(claims.shift_remove(app)),
            "publisher-of-other-version" => {
                let other = if order.v2 { "appid" } else { "azp" };
                if let Some(value) = claims.shift_remove(app) {
                    claims.insert(other.to_owned(), value);
                }
            }
            "wrong-role" => {
                set("oid", STRANGER.into());
                set("roles", json!(["Something.Else"]));
            }
            "no-role" => {
                set("oid", STRANGER.into());
                claims.shift_remove("roles");
            }
            "person" => {
                set("scp", "user_impersonation".into());
                set("idtyp", "user".into());
            }
            "expired" => {
                set("nbf", (now - 4_200).into());
                set("exp", (now - 600).into());
            }
            "not-yet-valid" => drop(set("nbf", (now + 600).into())),
            "no-expiry" => drop(claims.shift_remove("exp")),
            "dates-as-text" => {
                set("exp", (now + 3_600).to_string().into());
                set("nbf", now.to_string().into());
            }
            "dates-beyond-time" => drop(set("exp", json!(1e300))),
            "giant" => drop(set("groups", "x".repeat(20_000).into())),
            _ => {}
        }
    }

    fn header(&self, header: &mut Map<String, Value>) {
        let mut set = |name: &str, value: Value| header.insert(name.to_owned(), value);
        match self.order.variant {
            "alg-none" | "alg-none-signed" => drop(set("alg", "none".into())),
            "alg-lower-case" => drop(set("alg", "rs256".into())),
            "hs256-public-key" => drop(set("alg", "HS256".into())),
            "rs512" => drop(set("alg", "RS512".into())),
            "ps256" => drop(set("alg", "PS256".into())),
            "unknown-kid" => drop(set("kid", "a-key-that-nobody-published".into())),
            "no-kid" => drop(header.shift_remove("kid")),
            "kid-path" => drop(set("kid", "../../../common/discovery/keys".into())),
            "kid-url" => drop(set("kid", "https://keys.example/key".into())),
            "kid-giant" => drop(set("kid", "k".repeat(1_000).into())),
            "wrong-typ" => drop(set("typ", "logout+jwt".into())),
            "critical" => {
                set("crit", json!(["b64"]));
                set("b64", true.into());
            }
            "key-address" => drop(set("jku", "https://keys.example/keys".into())),
            _ => {}
        }
    }

    fn sign(
        &self,
        key: &SigningKey,
        header: &Map<String, Value>,
        claims: &Map<String, Value>,
    ) -> anyhow::Result<String> {
        let (head, body) = (text_of(header), text_of(claims));
        let plain = message(&head, &body);
        let twice = |text: &str, name: &str, value: &str| {
            text.replacen('{', &format!("{{\"{name}\":\"{value}\","), 1)
        };
        let rs256 = |message: &str| signed(message, &key.encoding, Algorithm::RS256);
        let stranger = || self.signer.stranger();
        match self.order.variant {
            "alg-none" => Ok(format!("{plain}.")),
            "hs256-public-key" => {
                signed(&plain, &EncodingKey::from_secret(&key.public_der), Algorithm::HS256)
            }
            "rs512" => signed(&plain, &key.encoding, Algorithm::RS512),
            "ps256" => signed(&plain, &key.encoding, Algorithm::PS256),
            "unknown-kid" | "stranger-key" | "key-address" => {
                signed(&plain, &stranger()?.encoding, Algorithm::RS256)
            }
            "own-key" => {
                let stranger = stranger()?;
                let mut header = header.clone();
                let (kid, SigningKey { modulus, exponent, .. }) = (&key.kid, stranger);
                header
                    .insert("jwk".to_owned(), json!({"kty": "RSA", "kid": kid, "n": modulus, "e": exponent}));
                signed(&message(&text_of(&header), &body), &stranger.encoding, Algorithm::RS256)
            }
            "tampered-claims" => {
                let genuine = rs256(&plain)?;
                let mut claims = claims.clone();
                claims.insert("oid".to_owned(), STRANGER.into());
                let signature = genuine.rsplit('.').next().unwrap_or_default();
                Ok(format!("{}.{signature}", message(&head, &text_of(&claims))))
            }
            "tampered-header" => {
                let genuine = rs256(&plain)?;
                let mut header = header.clone();
                header.insert("typ".to_owned(), "jwt".into());
                let signature = genuine.rsplit('.').next().unwrap_or_default();
                Ok(format!("{}.{signature}", message(&text_of(&header), &body)))
            }
            "tampered-signature" | "cut-signature" => {
                let genuine = rs256(&plain)?;
                let (message, signature) = genuine.rsplit_once('.').unwrap_or_default();
                let mut bytes = URL_SAFE_NO_PAD.decode(signature)?;
                match self.order.variant {
                    "cut-signature" => drop(bytes.pop()),
                    _ => bytes.iter_mut().take(1).for_each(|byte| *byte ^= 1),
                }
                Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(bytes)))
            }
            "duplicate-claim" => rs256(&message(&head, &twice(&body, "aud", STRANGER))),
            "duplicate-header" => rs256(&message(&twice(&head, "alg", "none"), &body)),
            "duplicate-deep" => {
                let nested = "{\"xms\":{\"a\":1,\"a\":2},";
                rs256(&message(&head, &body.replacen('{', nested, 1)))
            }
            "padded" => rs256(&format!("{}.{}", URL_SAFE.encode(&head), URL_SAFE.encode(pad(body)))),
            "two-parts" => Ok(plain),
            "four-parts" => Ok(format!("{}.e30", rs256(&plain)?)),
            "encrypted" => Ok(format!("{}.e30.e30", rs256(&plain)?)),
            "not-json" => rs256(&message(&head, "aud=us&exp=never")),
            "empty" => Ok(String::new()),
            _ => rs256(&plain),
        }
    }
}

/// A JSON text whose length makes base64 pad it.
fn pad(mut text: String) -> String {
    while text.len().is_multiple_of(3) {
        text.push(' ');
    }
    text
}
