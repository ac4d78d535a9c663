//! Who sent this: an access token of Entra ID, read so strictly that nothing but a token of Entra's own making gets to
//! the signature, and judged by what a door expects of its sender. Pure: the keys and the time are arguments.
//!
//! The signature is the library's work. What it leaves to its caller is here: one algorithm and no other, no member
//! twice, issuer and tenant that agree, and the sender's standing with us, because every application of a tenant can
//! get a token for our audience.

use std::collections::BTreeSet;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use time::{Duration, OffsetDateTime};

use crate::domain::cloud::Cloud;

/// The longest token that is looked at. Entra's own have one to three thousand bytes.
pub const MOST_BYTES: usize = 16 * 1024;
/// How far the issuer's clock may be from ours unless the rules say otherwise. Below a minute, so that a token that
/// was good a minute ago is not good now.
pub const SKEW: Duration = Duration::seconds(30);
/// The longest `kid`. Entra's have 27 characters.
const LONGEST_KID: usize = 128;
/// Keys smaller than this prove nothing any more; larger ones only cost time.
const KEY_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// The end of the year 9999: no date lies beyond it.
const LAST_SECOND: i64 = 253_402_300_799;

/// Microsoft Graph Change Tracking, the publisher of `validationTokens` (`graph.md` §13.7).
pub const GRAPH_CHANGE_TRACKING: &str = "0bf30f3b-4a52-48df-9a82-234910c4a086";
/// AZNS AAD Webhook: every customer's action groups (`sentinel.md` §16.2).
pub const ACTION_GROUPS: &str = "461e8683-5575-4561-ac7f-899cc907d62a";
/// The role that Microsoft's script grants to [`ACTION_GROUPS`].
pub const ACTION_GROUPS_ROLE: &str = "ActionGroupsSecureWebhook";
/// Microsoft.EventGrid in the public cloud (`sentinel.md` §16.3).
pub const EVENT_GRID: &str = "4962773b-9cdb-44cf-a8bf-237846a00ab7";
/// The role that Event Grid's own documentation grants to [`EVENT_GRID`].
pub const EVENT_GRID_ROLE: &str = "AzureEventGridSecureWebhookSubscriber";

/// Which of Entra's two forms a token has. The receiving registration decides, not the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// `ver` 1.0: issued by `sts.windows.net`, names the application in `appid`.
    V1,
    /// `ver` 2.0: issued by the login host, names the application in `azp`.
    V2,
}

impl Version {
    /// Both.
    pub const ALL: [Version; 2] = [Version::V1, Version::V2];

    /// As `ver` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Version::V1 => "1.0",
            Version::V2 => "2.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who issues the tokens of one tenant, and where its keys are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    /// The tenant's id, a GUID in lower case.
    pub tenant: String,
    /// The login host, without a slash at its end: issues version 2, publishes the keys of both.
    pub login: String,
    /// What issues version 1, without a slash at its end.
    pub sts: String,
}

impl Authority {
    /// The tenant's authority in its cloud. `login` is the cloud's login host, or what stands in for it.
    pub fn new(cloud: Cloud, login: &str, tenant: &str) -> Self {
        Self {
            tenant: tenant.to_ascii_lowercase(),
            login: login.trim_end_matches('/').to_owned(),
            sts: cloud.sts_url().to_owned(),
        }
    }

    /// `iss` of the tenant's tokens.
    pub fn issuer(&self, version: Version) -> String {
        match version {
            Version::V1 => format!("{}/{}/", self.sts, self.tenant),
            Version::V2 => format!("{}/{}/v2.0", self.login, self.tenant),
        }
    }

    /// Where the tenant's discovery document is. Built from the configuration alone, never from a token.
    pub fn discovery(&self, version: Version) -> String {
        let Self { login, tenant, .. } = self;
        match version {
            Version::V1 => format!("{login}/{tenant}/.well-known/openid-configuration"),
            Version::V2 => format!("{login}/{tenant}/v2.0/.well-known/openid-configuration"),
        }
    }
}

/// What the sender must be to us, besides an application of the right tenant that asked for our audience.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing more: only where `app_ids` names an application that cannot be had by others.
    AppAlone,
    /// One of these app roles, or one of these object ids. With neither, nobody has it.
    RoleOrObject {
        /// Values of the registration's app roles.
        roles: BTreeSet<String>,
        /// Object ids of service principals.
        object_ids: BTreeSet<String>,
    },
}

/// What a door expects of its sender's token. The default believes nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRules {
    /// The tenants that may have issued it.
    pub tenants: BTreeSet<String>,
    /// Our names: client ids and App ID URIs.
    pub audiences: BTreeSet<String>,
    /// The applications that may send; empty for any.
    pub app_ids: BTreeSet<String>,
    /// What the sender must be besides.
    pub standing: Standing,
    /// How far the issuer's clock may be from ours.
    pub skew: Duration,
}

impl Default for TokenRules {
    fn default() -> Self {
        Self {
            tenants: BTreeSet::new(),
            audiences: BTreeSet::new(),
            app_ids: BTreeSet::new(),
            standing: Standing::RoleOrObject { roles: BTreeSet::new(), object_ids: BTreeSet::new() },
            skew: SKEW,
        }
    }
}

impl TokenRules {
    /// The `validationTokens` of Graph's rich notifications: its publisher, and our client ids as the audience.
    pub fn graph<T: Into<String>, A: Into<String>>(
        tenants: impl IntoIterator<Item = T>,
        audiences: impl IntoIterator<Item = A>,
    ) -> Self {
        Self::of(tenants, audiences, &[GRAPH_CHANGE_TRACKING], Standing::AppAlone)
    }

    /// Action groups with a secure webhook.
    pub fn action_groups<T: Into<String>, A: Into<String>>(
        tenants: impl IntoIterator<Item = T>,
        audiences: impl IntoIterator<Item = A>,
        role: &str,
    ) -> Self {
        Self::of(tenants, audiences, &[ACTION_GROUPS], Standing::role(role))
    }

    /// Event Grid subscriptions with Entra authentication.
    pub fn event_grid<T: Into<String>, A: Into<String>>(
        tenants: impl IntoIterator<Item = T>,
        audiences: impl IntoIterator<Item = A>,
        role: &str,
    ) -> Self {
        Self::of(tenants, audiences, &[EVENT_GRID], Standing::role(role))
    }

    /// A playbook's managed identity: any application that has one of the roles or is one of the objects.
    pub fn playbook<T: Into<String>, A: Into<String>>(
        tenants: impl IntoIterator<Item = T>,
        audiences: impl IntoIterator<Item = A>,
        standing: Standing,
    ) -> Self {
        Self::of(tenants, audiences, &[], standing)
    }

    fn of<T: Into<String>, A: Into<String>>(
        tenants: impl IntoIterator<Item = T>,
        audiences: impl IntoIterator<Item = A>,
        app_ids: &[&str],
        standing: Standing,
    ) -> Self {
        Self {
            tenants: tenants.into_iter().map(|tenant| tenant.into().to_ascii_lowercase()).collect(),
            audiences: audiences.into_iter().map(Into::into).collect(),
            app_ids: app_ids.iter().map(|id| (*id).to_owned()).collect(),
            standing,
            skew: SKEW,
        }
    }
}

impl Standing {
    /// One app role.
    pub fn role(role: &str) -> Self {
        Standing::RoleOrObject { roles: BTreeSet::from([role.to_owned()]), object_ids: BTreeSet::new() }
    }
}

/// A sender whose token was proved and judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The tenant that issued it, in lower case.
    pub tenant: String,
    /// The application that sent it (`appid` or `azp`), in lower case.
    pub app_id: String,
    /// Its service principal, where the token names one.
    pub object_id: Option<String>,
    /// The app roles that our registration gave it.
    pub roles: Vec<String>,
    /// When the token ends.
    pub expires: OffsetDateTime,
}

/// Why a token was not believed. Says what is wrong, never what the token held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// Longer than [`MOST_BYTES`].
    #[error("the token is longer than {MOST_BYTES} bytes")]
    TooLong,
    /// Not three parts of base64url that hold JSON objects.
    #[error("the token is not a compact JWS")]
    Malformed,
    /// A member stands twice: two readers would read two tokens.
    #[error("a member of the token stands twice")]
    Duplicate,
    /// `alg` is not RS256.
    #[error("the token's algorithm is not RS256")]
    Algorithm,
    /// `typ` is neither JWT nor at+jwt.
    #[error("the token's type is not that of an access token")]
    Type,
    /// `crit`: extensions that we do not know.
    #[error("the token demands an extension")]
    Critical,
    /// It brings a key of its own, or says where to fetch one.
    #[error("the token names a key of its own")]
    OwnKey,
    /// `kid` is missing, too long, or holds what no key id of Entra's holds.
    #[error("the token's key id is missing or not one of Entra ID's")]
    KeyId,
    /// A claim is missing, or has another kind of value.
    #[error("a claim is missing or is not of its kind")]
    Claims,
    /// `ver` is neither 1.0 nor 2.0.
    #[error("the token's version is unknown")]
    Version,
    /// Issued by a tenant that the door does not serve.
    #[error("the token is of a tenant that is not configured here")]
    Tenant,
    /// `iss` is not what issues the tenant's tokens of this version.
    #[error("the token's issuer is not its tenant's")]
    Issuer,
    /// Meant for somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// Sent by an application that this door does not take.
    #[error("the token is of an application that is not expected here")]
    Application,
    /// A person's token: doors are for services.
    #[error("the token is a person's, not an application's")]
    Delegated,
    /// The sender has neither of the roles, and is none of the objects.
    #[error("the sender has no app role and is no listed object")]
    Standing,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// No key of the tenant has its key id.
    #[error("the tenant has no such key")]
    UnknownKey,
    /// The key says no.
    #[error("the signature is wrong")]
    Signature,
}

impl Refused {
    /// All of them, for the metrics to begin at zero.
    pub const ALL: [Refused; 20] = [
        Refused::TooLong,
        Refused::Malformed,
        Refused::Duplicate,
        Refused::Algorithm,
        Refused::Type,
        Refused::Critical,
        Refused::OwnKey,
        Refused::KeyId,
        Refused::Claims,
        Refused::Version,
        Refused::Tenant,
        Refused::Issuer,
        Refused::Audience,
        Refused::Application,
        Refused::Delegated,
        Refused::Standing,
        Refused::Expired,
        Refused::NotYetValid,
        Refused::UnknownKey,
        Refused::Signature,
    ];

    /// A short constant for metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Refused::TooLong => "token-too-long",
            Refused::Malformed => "token-malformed",
            Refused::Duplicate => "token-duplicate-member",
            Refused::Algorithm => "token-algorithm",
            Refused::Type => "token-type",
            Refused::Critical => "token-critical",
            Refused::OwnKey => "token-own-key",
            Refused::KeyId => "token-key-id",
            Refused::Claims => "token-claims",
            Refused::Version => "token-version",
            Refused::Tenant => "token-tenant",
            Refused::Issuer => "token-issuer",
            Refused::Audience => "token-audience",
            Refused::Application => "token-application",
            Refused::Delegated => "token-delegated",
            Refused::Standing => "token-standing",
            Refused::Expired => "token-expired",
            Refused::NotYetValid => "token-not-yet-valid",
            Refused::UnknownKey => "token-unknown-key",
            Refused::Signature => "token-signature",
        }
    }
}

/// The token of an `Authorization` header: the scheme's name in any case, one blank, one token.
pub fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim_start_matches(' ');
    let whole = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    (scheme.eq_ignore_ascii_case("bearer") && whole).then_some(token)
}

/// A token that reads as one, and that nobody has proved yet.
pub struct Unproved<'t> {
    kid: String,
    claims: Claims,
    signed: &'t str,
    signature: &'t str,
}

/// A token that a key has proved. What it says is true, which is not yet a reason to let it in.
#[derive(Clone)]
pub struct Proved {
    kid: String,
    claims: Claims,
}

#[derive(Clone)]
struct Claims {
    version: Version,
    issuer: String,
    tenant: String,
    audience: String,
    app_id: String,
    object_id: Option<String>,
    roles: Vec<String>,
    delegated: bool,
    not_before: Option<i64>,
    expires: i64,
}

// Claims and tokens are nobody's business but the sender's.
impl fmt::Debug for Unproved<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unproved")
    }
}

impl fmt::Debug for Proved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proved")
    }
}

impl<'t> Unproved<'t> {
    /// Reads a compact JWS, and refuses what Entra would not have written.
    pub fn read(token: &'t str) -> Result<Self, Refused> {
        if token.len() > MOST_BYTES {
            return Err(Refused::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Refused::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Refused::Malformed)?;
        // A third dot would be in the claims, where base64url has none.
        let kid = key_id(&object(header)?)?;
        let claims = Claims::read(&object(claims)?)?;
        // Exactly one text stands for these bytes, so that a token has one form and one place in a cache.
        if signature.is_empty() || URL_SAFE_NO_PAD.decode(signature).is_err() {
            return Err(Refused::Malformed);
        }
        Ok(Self { kid, claims, signed, signature })
    }

    /// The key that is said to have signed it: to be looked up in a set, never to be put into an address.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The tenant that is said to have issued it.
    pub fn tenant(&self) -> &str {
        &self.claims.tenant
    }

    /// Its form.
    pub fn version(&self) -> Version {
        self.claims.version
    }

    /// Whether it would be let in if it were proved: asked first, because it costs less than a signature.
    pub fn judge(
        &self,
        rules: &TokenRules,
        authority: &Authority,
        now: OffsetDateTime,
    ) -> Result<(), Refused> {
        self.claims.judge(rules, authority, now)
    }

    /// Believes it if the key signed it.
    pub fn prove(self, key: &Key) -> Result<Proved, Refused> {
        let signed = self.signed.as_bytes();
        match jsonwebtoken::crypto::verify(self.signature, signed, &key.decoding, Algorithm::RS256) {
            Ok(true) if key.kid == self.kid => Ok(Proved { kid: self.kid, claims: self.claims }),
            _ => Err(Refused::Signature),
        }
    }
}

impl Proved {
    /// The key that signed it.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The tenant that issued it.
    pub fn tenant(&self) -> &str {
        &self.claims.tenant
    }

    /// Its form.
    pub fn version(&self) -> Version {
        self.claims.version
    }

    /// When it ends, in seconds since 1970.
    pub fn expires(&self) -> i64 {
        self.claims.expires
    }

    /// Whether this door lets it in now.
    pub fn judge(
        &self,
        rules: &TokenRules,
        authority: &Authority,
        now: OffsetDateTime,
    ) -> Result<Verified, Refused> {
        self.claims.judge(rules, authority, now)?;
        let Claims { tenant, app_id, object_id, roles, expires, .. } = self.claims.clone();
        let expires = OffsetDateTime::from_unix_timestamp(expires).map_err(|_| Refused::Claims)?;
        Ok(Verified { tenant, app_id, object_id, roles, expires })
    }
}

impl Claims {
    fn read(claims: &Map<String, Value>) -> Result<Self, Refused> {
        let version = match text(claims, "ver")?.ok_or(Refused::Version)?.as_str() {
            "1.0" => Version::V1,
            "2.0" => Version::V2,
            _ => return Err(Refused::Version),
        };
        let app = match version {
            Version::V1 => "appid",
            Version::V2 => "azp",
        };
        let needed = |name| text(claims, name).and_then(|text| text.ok_or(Refused::Claims));
        let kind = text(claims, "idtyp")?;
        // The date of issue decides nothing; but a token in which it is no date is none of Entra's.
        date(claims, "iat")?;
        Ok(Self {
            version,
            issuer: needed("iss")?,
            tenant: needed("tid")?,
            audience: audience(claims)?,
            // Identity tokens lack it: they are proof for the application that asked, not for whoever holds them.
            app_id: needed(app)?.to_ascii_lowercase(),
            object_id: text(claims, "oid")?.map(|id| id.to_ascii_lowercase()),
            roles: texts(claims, "roles")?,
            delegated: claims.contains_key("scp") || kind.is_some_and(|kind| kind != "app"),
            not_before: date(claims, "nbf")?,
            expires: date(claims, "exp")?.ok_or(Refused::Claims)?,
        })
    }

    fn judge(&self, rules: &TokenRules, authority: &Authority, now: OffsetDateTime) -> Result<(), Refused> {
        if self.tenant != authority.tenant || !rules.tenants.contains(&self.tenant) {
            return Err(Refused::Tenant);
        }
        if self.issuer != authority.issuer(self.version) {
            return Err(Refused::Issuer);
        }
        let (now, skew) = (now.unix_timestamp(), rules.skew.whole_seconds());
        if now >= self.expires.saturating_add(skew) {
            return Err(Refused::Expired);
        }
        if self.not_before.is_some_and(|from| now.saturating_add(skew) < from) {
            return Err(Refused::NotYetValid);
        }
        if !rules.audiences.iter().any(|ours| same_audience(ours, &self.audience)) {
            return Err(Refused::Audience);
        }
        let listed =
            |ids: &BTreeSet<String>, id: &str| ids.iter().any(|known| known.eq_ignore_ascii_case(id));
        if !rules.app_ids.is_empty() && !listed(&rules.app_ids, &self.app_id) {
            return Err(Refused::Application);
        }
        if self.delegated {
            return Err(Refused::Delegated);
        }
        match &rules.standing {
            // Without a named application this would be "audience alone", which every application of the tenant has.
            Standing::AppAlone if !rules.app_ids.is_empty() => Ok(()),
            Standing::AppAlone => Err(Refused::Standing),
            Standing::RoleOrObject { roles, object_ids } => {
                let has_role = self.roles.iter().any(|role| roles.contains(role));
                let is_listed = self.object_id.as_deref().is_some_and(|id| listed(object_ids, id));
                if has_role || is_listed { Ok(()) } else { Err(Refused::Standing) }
            }
        }
    }
}

/// App ID URIs as they stand; client ids are GUIDs, which people write in either case.
fn same_audience(ours: &str, theirs: &str) -> bool {
    ours == theirs || (uuid::Uuid::try_parse(ours).is_ok() && ours.eq_ignore_ascii_case(theirs))
}

/// The key id, from a header that asks for nothing else.
fn key_id(header: &Map<String, Value>) -> Result<String, Refused> {
    if header.get("alg").and_then(Value::as_str) != Some("RS256") {
        return Err(Refused::Algorithm);
    }
    match header.get("typ") {
        None => {}
        Some(Value::String(typ)) if ["JWT", "at+jwt"].iter().any(|ours| typ.eq_ignore_ascii_case(ours)) => {}
        Some(_) => return Err(Refused::Type),
    }
    if header.contains_key("crit") {
        return Err(Refused::Critical);
    }
    if ["jwk", "jku", "x5u", "x5c"].iter().any(|name| header.contains_key(*name)) {
        return Err(Refused::OwnKey);
    }
    match header.get("kid") {
        Some(Value::String(kid)) if is_key_id(kid) => Ok(kid.clone()),
        _ => Err(Refused::KeyId),
    }
}

/// Entra's key ids are thumbprints in base64url. What could be a path, a query or a quote is none.
fn is_key_id(kid: &str) -> bool {
    (1..=LONGEST_KID).contains(&kid.len())
        && kid.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'='))
}

fn text(claims: &Map<String, Value>, name: &str) -> Result<Option<String>, Refused> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
        Some(_) => Err(Refused::Claims),
    }
}

fn texts(claims: &Map<String, Value>, name: &str) -> Result<Vec<String>, Refused> {
    let Some(value) = claims.get(name) else { return Ok(Vec::new()) };
    let list = value.as_array().ok_or(Refused::Claims)?;
    list.iter().map(|text| text.as_str().map(str::to_owned).ok_or(Refused::Claims)).collect()
}

/// One audience: a text, or a list of one. Entra writes the first; the second means the same.
fn audience(claims: &Map<String, Value>) -> Result<String, Refused> {
    let value = match claims.get("aud") {
        Some(Value::Array(list)) => match list.as_slice() {
            [one] => one,
            _ => return Err(Refused::Audience),
        },
        Some(value) => value,
        None => return Err(Refused::Claims),
    };
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned).ok_or(Refused::Claims)
}

/// Whole seconds since 1970.
fn date(claims: &Map<String, Value>, name: &str) -> Result<Option<i64>, Refused> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => {
            value.as_i64().filter(|at| (0..=LAST_SECOND).contains(at)).map(Some).ok_or(Refused::Claims)
        }
    }
}

/// One part of a token: base64url without padding of a JSON object.
fn object(part: &str) -> Result<Map<String, Value>, Refused> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Malformed)?;
    match strict(&bytes)? {
        Value::Object(members) => Ok(members),
        _ => Err(Refused::Malformed),
    }
}

/// JSON in which no object has a member twice, at any depth.
fn strict(bytes: &[u8]) -> Result<Value, Refused> {
    match serde_json::from_slice::<Strict>(bytes) {
        Ok(Strict(value)) => Ok(value),
        // The only complaint about data, as opposed to form, is the one that `Strict` makes.
        Err(error) if error.is_data() => Err(Refused::Duplicate),
        Err(_) => Err(Refused::Malformed),
    }
}

/// A JSON value that was read member by member. `serde_json::Value` keeps the last of two.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let Strict(value) = members.next_value()?;
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a member stands twice"));
            }
        }
        Ok(Value::Object(object))
    }
}

/// One of a tenant's signing keys.
#[derive(Clone)]
pub struct Key {
    kid: String,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
    decoding: DecodingKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.kid == other.kid && self.modulus == other.modulus && self.exponent == other.exponent
    }
}

impl Key {
    /// Its id.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// A key as the key document has it. `None` for what does not sign tokens of this tenant: another kind, another
    /// use, another algorithm, another tenant's, or too small a key.
    fn read(key: &Value, tenant: &str) -> Option<Self> {
        let member = |name: &str| key.get(name).and_then(Value::as_str);
        // A member that is there must say this; one that is missing says nothing.
        let fits = |name: &str, ours: &str| key.get(name).is_none_or(|value| value.as_str() == Some(ours));
        let kid = member("kid").filter(|kid| is_key_id(kid))?;
        if member("kty") != Some("RSA") || !fits("use", "sig") || !fits("alg", "RS256") {
            return None;
        }
        let issuer = member("issuer").unwrap_or("{tenantid}").to_ascii_lowercase();
        if !issuer.split('/').any(|part| part == "{tenantid}" || part == tenant) {
            return None;
        }
        let number = |name: &str| {
            let bytes = URL_SAFE_NO_PAD.decode(member(name)?).ok()?;
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            Some(bytes[zeros..].to_vec())
        };
        let (modulus, exponent) = (number("n")?, number("e")?);
        let odd = |number: &[u8]| number.last().is_some_and(|byte| byte % 2 == 1);
        let bits = modulus.len() * 8 - modulus.first()?.leading_zeros() as usize;
        // 65537 and what is near it: smaller exponents have a history, larger ones only cost time.
        if !KEY_BITS.contains(&bits)
            || !odd(&modulus)
            || !odd(&exponent)
            || !(3..=4).contains(&exponent.len())
        {
            return None;
        }
        let decoding = DecodingKey::from_rsa_raw_components(&modulus, &exponent);
        Some(Self { kid: kid.to_owned(), modulus, exponent, decoding })
    }
}

/// What is wrong with a document of the key service, in a sentence for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or a member twice.
    #[error("the document is not what the key service publishes")]
    Unreadable,
    /// The discovery document is another issuer's.
    #[error("the discovery document names another issuer; check cloud and login_url")]
    OtherIssuer,
    /// The keys are said to be on another host.
    #[error("the discovery document names a key address that is not on the login host")]
    OtherHost,
    /// There is no key in it that could prove a token.
    #[error("the key document holds no usable key")]
    NoKey,
}

/// Where the keys are, from the tenant's discovery document: on the login host, or it is not believed.
pub fn key_address(
    document: &[u8],
    authority: &Authority,
    version: Version,
) -> Result<url::Url, DocumentError> {
    let document = strict(document).map_err(|_| DocumentError::Unreadable)?;
    let member = |name: &str| document.get(name).and_then(Value::as_str).ok_or(DocumentError::Unreadable);
    if member("issuer")? != authority.issuer(version) {
        return Err(DocumentError::OtherIssuer);
    }
    let address = url::Url::parse(member("jwks_uri")?).map_err(|_| DocumentError::Unreadable)?;
    let login = url::Url::parse(&authority.login).map_err(|_| DocumentError::OtherHost)?;
    let bare = address.username().is_empty() && address.password().is_none();
    // The origin: scheme, host and port.
    if !bare || !address.origin().is_tuple() || address.origin() != login.origin() {
        return Err(DocumentError::OtherHost);
    }
    Ok(address)
}

/// The keys of a key document that can prove a tenant's tokens. Those that cannot are left out, and so is a key id
/// that two keys share.
pub fn keys(document: &[u8], tenant: &str) -> Result<Vec<Key>, DocumentError> {
    let document = strict(document).map_err(|_| DocumentError::Unreadable)?;
    let listed = document.get("keys").and_then(Value::as_array).ok_or(DocumentError::Unreadable)?;
    let mut keys: Vec<Key> = Vec::new();
    let mut twice = BTreeSet::new();
    for key in listed.iter().filter_map(|key| Key::read(key, tenant)) {
        match keys.iter().find(|known| known.kid == key.kid) {
            None => keys.push(key),
            Some(known) if *known == key => {}
            Some(_) => {
                twice.insert(key.kid);
            }
        }
    }
    keys.retain(|key| !twice.contains(&key.kid));
    if keys.is_empty() { Err(DocumentError::NoKey) } else { Ok(keys) }
}
