//! What a notification is about. It is a hint and nothing more, so only identity is read from it: which incident, in
//! which tenant or workspace, and where it is named, which version. Pure: who sent it is judged elsewhere.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::domain::rich::Sealed;

/// An id longer than this is none of either service's.
const LONGEST_ID: usize = 512;
/// More validation tokens than this are looked at for no one: Graph sends one for each application and tenant.
const MOST_TOKENS: usize = 256;
/// Deeper nesting than this is nobody's notification.
const DEEPEST: usize = 128;

/// Why a body was refused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not JSON.
    #[error("the body is not JSON")]
    NotJson,
    /// Nested too deeply.
    #[error("the body is nested more than {DEEPEST} levels deep")]
    TooDeep,
    /// JSON, but not of the expected shape.
    #[error("the body is not {0}")]
    NotA(&'static str),
}

/// Text, borrowed from the body where no escape stands in the way.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

type Maybe<'a> = Option<Text<'a>>;

fn text<'s>(maybe: &'s Maybe<'_>) -> Option<&'s str> {
    maybe.as_ref().map(|text| &*text.0)
}

/// What one item of a Graph notification is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// An incident, by Graph's id.
    Incident(String),
    /// An alert, whose incident has to be asked for.
    Alert(String),
    /// The subscription itself: `reauthorizationRequired`, `subscriptionRemoved`, `missed` or a newer word.
    Lifecycle(String),
    /// Something that we do not follow.
    Other,
    /// An item whose id is missing, not text, or too long.
    Nothing,
}

/// One item of a Graph notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphItem {
    /// The tenant, in lower case; empty when it is not named.
    pub tenant_id: String,
    /// The subscription, as it came; empty when it is not named.
    pub subscription_id: String,
    /// The shared secret of the subscription, to be compared with what we gave it.
    pub client_state: Option<String>,
    /// What it is about.
    pub about: About,
    /// The encrypted resource, where the item brings one. Then its word counts, once it is opened.
    pub sealed: Option<Box<Sealed>>,
}

/// A whole POST of Graph's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GraphNotice {
    /// The items, in the order of the body.
    pub items: Vec<GraphItem>,
    /// What proves who sent the encrypted ones.
    pub validation_tokens: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Collection<'a> {
    #[serde(borrow)]
    value: Vec<Item<'a>>,
    #[serde(borrow)]
    validation_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LooseCollection<'a> {
    #[serde(borrow)]
    value: Vec<&'a RawValue>,
    #[serde(borrow)]
    validation_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item<'a> {
    #[serde(borrow)]
    tenant_id: Maybe<'a>,
    #[serde(borrow)]
    subscription_id: Maybe<'a>,
    #[serde(borrow)]
    client_state: Maybe<'a>,
    #[serde(borrow)]
    resource: Maybe<'a>,
    #[serde(borrow)]
    lifecycle_event: Maybe<'a>,
    #[serde(borrow)]
    resource_data: Option<ResourceData<'a>>,
    #[serde(borrow)]
    encrypted_content: Option<EncryptedContent<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EncryptedContent<'a> {
    #[serde(borrow)]
    data: Maybe<'a>,
    #[serde(borrow)]
    data_signature: Maybe<'a>,
    #[serde(borrow)]
    data_key: Maybe<'a>,
    #[serde(borrow)]
    encryption_certificate_id: Maybe<'a>,
}

#[derive(Deserialize)]
struct ResourceData<'a> {
    #[serde(borrow)]
    id: Maybe<'a>,
    #[serde(rename = "@odata.id", borrow)]
    path: Maybe<'a>,
    #[serde(rename = "@odata.type", borrow)]
    kind: Maybe<'a>,
}

/// Reads a Graph change notification collection. A bad item is an item about [`About::Nothing`]; only a body that is no
/// collection at all is refused.
pub fn graph(body: &[u8]) -> Result<GraphNotice, Unreadable> {
    check_depth(body)?;
    if !begins_an_object(body) {
        serde_json::from_slice::<&RawValue>(body).map_err(|_| Unreadable::NotJson)?;
        return Err(Unreadable::NotA("a collection of notifications: an object with a list named `value`"));
    }
    match serde_json::from_slice::<Collection<'_>>(body) {
        Ok(Collection { value, validation_tokens }) => Ok(GraphNotice {
            items: value.into_iter().map(graph_item).collect(),
            validation_tokens: tokens(validation_tokens),
        }),
        // One odd item (a number for an id, half a surrogate pair) must not take the others with it: look at each alone.
        Err(_) => {
            let loose: LooseCollection<'_> = serde_json::from_slice(body).map_err(|error| {
                if error.is_data() {
                    Unreadable::NotA("a collection of notifications: an object with a list named `value`")
                } else {
                    Unreadable::NotJson
                }
            })?;
            let nothing = || GraphItem {
                tenant_id: String::new(),
                subscription_id: String::new(),
                client_state: None,
                about: About::Nothing,
                sealed: None,
            };
            let read =
                |raw: &RawValue| serde_json::from_str(raw.get()).map_or_else(|_| nothing(), graph_item);
            Ok(GraphNotice {
                items: loose.value.into_iter().map(read).collect(),
                validation_tokens: tokens(loose.validation_tokens),
            })
        }
    }
}

/// The tokens that are text. What is not proves nothing.
fn tokens(raw: Option<&RawValue>) -> Vec<String> {
    let list = raw.and_then(|raw| serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok()).unwrap_or_default();
    list.into_iter().take(MOST_TOKENS).filter_map(|token| serde_json::from_str(token.get()).ok()).collect()
}

fn graph_item(item: Item<'_>) -> GraphItem {
    let about = match text(&item.lifecycle_event) {
        Some(event) if is_id(event) => About::Lifecycle(event.to_owned()),
        Some(_) => About::Nothing,
        None => about_resource(text(&item.resource), item.resource_data.as_ref()),
    };
    GraphItem {
        tenant_id: text(&item.tenant_id).unwrap_or_default().to_ascii_lowercase(),
        subscription_id: text(&item.subscription_id).unwrap_or_default().to_owned(),
        client_state: item.client_state.map(|state| state.0.into_owned()),
        about,
        // With a member missing it is sealed all the same: it must prove itself, and cannot.
        sealed: item.encrypted_content.map(|content| {
            let owned = |maybe: Maybe<'_>| maybe.map(|text| text.0.into_owned()).unwrap_or_default();
            Box::new(Sealed {
                data: owned(content.data),
                data_signature: owned(content.data_signature),
                data_key: owned(content.data_key),
                certificate_id: owned(content.encryption_certificate_id),
            })
        }),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Opened<'a> {
    #[serde(borrow)]
    id: Maybe<'a>,
    #[serde(rename = "@odata.type", borrow)]
    kind: Maybe<'a>,
    #[serde(borrow)]
    incident_id: Maybe<'a>,
    #[serde(default, borrow)]
    incident_ids: Option<Vec<Text<'a>>>,
}

/// What a resource is about that came along with an item and was opened. The item's own word stands in for what the
/// resource does not say.
pub fn opened(item: &About, resource: &[u8]) -> Vec<About> {
    if check_depth(resource).is_err() {
        return vec![About::Nothing];
    }
    let Ok(read) = serde_json::from_slice::<Opened<'_>>(resource) else { return vec![About::Nothing] };
    let kind = text(&read.kind).and_then(kind);
    let id = text(&read.id).filter(|id| is_id(id));
    match (kind, item) {
        (Some(Kind::Incident), About::Incident(own)) | (None, About::Incident(own)) => {
            vec![About::Incident(id.unwrap_or(own).to_owned())]
        }
        (Some(Kind::Incident), _) => vec![id.map_or(About::Nothing, |id| About::Incident(id.to_owned()))],
        (Some(Kind::Alert), _) | (None, About::Alert(_)) => {
            // An alert of either kind names its incident, or its incidents.
            let several = read.incident_ids.unwrap_or_default();
            let named = text(&read.incident_id).into_iter().chain(several.iter().map(|id| &*id.0));
            let incidents: Vec<About> =
                named.filter(|id| is_id(id)).take(16).map(|id| About::Incident(id.to_owned())).collect();
            let own = if let About::Alert(own) = item { Some(own.as_str()) } else { None };
            match id.or(own) {
                _ if !incidents.is_empty() => incidents,
                Some(id) => vec![About::Alert(id.to_owned())],
                None => vec![About::Nothing],
            }
        }
        (None, other) => vec![other.clone()],
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Incident,
    Alert,
}

/// The kinds that we follow, by `@odata.type`: incidents, alerts, and the legacy alert.
fn kind(name: &str) -> Option<Kind> {
    let name = name.to_ascii_lowercase();
    let ends = |ending| name.ends_with(ending);
    match () {
        () if ends("security.incident") => Some(Kind::Incident),
        () if ends("security.alert") || ends("graph.alert") => Some(Kind::Alert),
        () => None,
    }
}

fn about_resource(resource: Option<&str>, data: Option<&ResourceData<'_>>) -> About {
    let path = resource.or_else(|| data.and_then(|data| text(&data.path)));
    let named = data.and_then(|data| text(&data.kind));
    let (kind, from_path) = match path.map(in_path) {
        Some(Some(found)) => found,
        Some(None) => return About::Other,
        None => match named.map(kind) {
            Some(Some(kind)) => (kind, None),
            Some(None) => return About::Other,
            None => return About::Nothing,
        },
    };
    match data.and_then(|data| text(&data.id)).map(Cow::Borrowed).or(from_path) {
        Some(id) if is_id(&id) => match kind {
            Kind::Incident => About::Incident(id.into_owned()),
            Kind::Alert => About::Alert(id.into_owned()),
        },
        _ => About::Nothing,
    }
}

/// The id in `security/incidents/29` or `/security/alerts_v2('29')`, with or without a host and version before it.
/// The outer `None`: about nothing that we follow. The inner one: about such a thing, without an id.
fn in_path(path: &str) -> Option<(Kind, Option<Cow<'_, str>>)> {
    const COLLECTIONS: [(&[u8], Kind); 3] = [
        (b"security/incidents", Kind::Incident),
        (b"security/alerts_v2", Kind::Alert),
        (b"security/alerts", Kind::Alert),
    ];
    let path = path.split('?').next().unwrap_or(path);
    COLLECTIONS.into_iter().find_map(|(collection, kind)| Some((kind, id_in_path(path, collection)?)))
}

fn id_in_path<'p>(path: &'p str, collection: &[u8]) -> Option<Option<Cow<'p, str>>> {
    let start = path
        .as_bytes()
        .windows(collection.len())
        .position(|window| window.eq_ignore_ascii_case(collection))?;
    if start > 0 && path.as_bytes()[start - 1] != b'/' {
        return None;
    }
    // The window is ASCII, so its end is the beginning of a character.
    let rest = &path[start + collection.len()..];
    if rest.is_empty() || rest == "/" {
        return Some(None);
    }
    if let Some(id) = rest.strip_prefix('/') {
        return Some(id.split('/').next().map(Cow::Borrowed));
    }
    let key = rest.strip_prefix("('")?;
    // A quote inside a key is doubled, so the first single one ends it; ids have none, and what has is refused later.
    Some(key.split_once("')").map(|(id, _)| Cow::Borrowed(id)))
}

/// What a playbook's body is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaybookNotice {
    /// The workspace that the sender says it is of, if it names all three parts.
    pub workspace: Option<WorkspaceInfo>,
    /// ARM's name of the incident, if the body has a usable one.
    pub incident: Option<String>,
    /// The etag, inner quotes included.
    pub version: Option<String>,
}

/// `workspaceInfo`, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceInfo {
    /// `SubscriptionId`.
    pub subscription_id: String,
    /// `ResourceGroupName`.
    pub resource_group: String,
    /// `WorkspaceName`.
    pub workspace_name: String,
}

#[derive(Deserialize)]
struct Playbook<'a> {
    #[serde(borrow)]
    object: Option<Object<'a>>,
    #[serde(rename = "Object", borrow)]
    capital: Option<Object<'a>>,
    #[serde(rename = "workspaceInfo", alias = "WorkspaceInfo", borrow)]
    workspace: Option<Info<'a>>,
}

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    id: Maybe<'a>,
    #[serde(borrow)]
    name: Maybe<'a>,
    #[serde(borrow)]
    etag: Maybe<'a>,
}

#[derive(Deserialize)]
struct Info<'a> {
    #[serde(rename = "SubscriptionId", alias = "subscriptionId", borrow)]
    subscription: Maybe<'a>,
    #[serde(rename = "ResourceGroupName", alias = "resourceGroupName", borrow)]
    group: Maybe<'a>,
    #[serde(rename = "WorkspaceName", alias = "workspaceName", borrow)]
    workspace: Maybe<'a>,
}

/// Reads the body that a playbook posts from the trigger *Microsoft Sentinel incident*. An object without a usable
/// incident is readable, and about nothing.
pub fn playbook(body: &[u8]) -> Result<PlaybookNotice, Unreadable> {
    check_depth(body)?;
    let read: Playbook<'_> = match serde_json::from_slice(body) {
        Ok(read) if begins_an_object(body) => read,
        Ok(_) => return Err(Unreadable::NotA("a JSON object")),
        Err(_) => return about_nothing(body),
    };
    let object = read.object.or(read.capital);
    let named = object.as_ref().and_then(|object| {
        let last = |id| str::rsplit(id, '/').next();
        text(&object.name).or_else(|| text(&object.id).and_then(last)).filter(|name| is_id(name))
    });
    Ok(PlaybookNotice {
        workspace: read.workspace.and_then(|info| {
            Some(WorkspaceInfo {
                subscription_id: info.subscription?.0.into_owned(),
                resource_group: info.group?.0.into_owned(),
                workspace_name: info.workspace?.0.into_owned(),
            })
        }),
        incident: named.map(str::to_owned),
        version: object
            .as_ref()
            .and_then(|object| text(&object.etag))
            .filter(|etag| is_id(etag))
            .map(str::to_owned),
    })
}

/// Tells an object with odd members (a number for a name, half a surrogate pair) from what is no object.
fn about_nothing(body: &[u8]) -> Result<PlaybookNotice, Unreadable> {
    serde_json::from_slice::<&RawValue>(body).map_err(|_| Unreadable::NotJson)?;
    if !begins_an_object(body) {
        return Err(Unreadable::NotA("a JSON object"));
    }
    Ok(PlaybookNotice { workspace: None, incident: None, version: None })
}

/// Derived structs can also be read from lists; a notification is never one.
fn begins_an_object(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'{')
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= LONGEST_ID
}

/// Members that nobody asks for are skipped without recursion, and so without the parser's own limit.
fn check_depth(body: &[u8]) -> Result<(), Unreadable> {
    // What has no more brackets than that has no more levels. Counting them is quick; nearly every body ends here.
    if body.iter().filter(|byte| matches!(byte, b'{' | b'[')).count() <= DEEPEST {
        return Ok(());
    }
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut quoted, mut escaped) = (false, false);
    for byte in body {
        if quoted {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => quoted = true,
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    if deepest > DEEPEST { Err(Unreadable::TooDeep) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abouts(body: &str) -> Vec<About> {
        graph(body.as_bytes()).unwrap().items.into_iter().map(|item| item.about).collect()
    }

    fn incident(id: &str) -> About {
        About::Incident(id.to_owned())
    }

    #[test]
    fn an_incident_is_named_in_many_ways() {
        for (item, about) in [
            (r#"{"resource":"security/incidents/29"}"#, incident("29")),
            (r#"{"resource":"/security/incidents('29')"}"#, incident("29")),
            (r#"{"resource":"https://graph.microsoft.com/v1.0/Security/Incidents/29?$x=1"}"#, incident("29")),
            (r#"{"resource":"security/incidents/29","resourceData":{"id":"30"}}"#, incident("30")),
            (r#"{"resource":"security/incidents","resourceData":{"id":"a/b\u0000"}}"#, incident("a/b\0")),
            (
                r##"{"resourceData":{"@odata.type":"#microsoft.graph.security.incident","id":"7"}}"##,
                incident("7"),
            ),
            (r#"{"resourceData":{"@odata.id":"security/incidents/8"}}"#, incident("8")),
            (r#"{"resource":"security/alerts/a1"}"#, About::Alert("a1".into())),
            (r#"{"resource":"/Security/Alerts_V2('a1')"}"#, About::Alert("a1".into())),
            (
                r##"{"resourceData":{"@odata.type":"#Microsoft.Graph.alert","id":"a1"}}"##,
                About::Alert("a1".into()),
            ),
            (r#"{"resource":"security/alerts_v3/a1"}"#, About::Other),
            (r#"{"lifecycleEvent":"missed"}"#, About::Lifecycle("missed".into())),
            (r#"{"resource":"users/1/messages/2","resourceData":{"id":"2"}}"#, About::Other),
            (r#"{"resource":"insecurity/incidents/1"}"#, About::Other),
            (r#"{"resource":"security/incidents"}"#, About::Nothing),
            (r#"{"resource":"security/incidents/"}"#, About::Nothing),
            (r#"{"resource":"security/incidents","resourceData":{"id":""}}"#, About::Nothing),
            (r#"{"changeType":"updated"}"#, About::Nothing),
            (r#"{}"#, About::Nothing),
        ] {
            assert_eq!(abouts(&format!(r#"{{"value":[{item}]}}"#)), [about], "{item}");
        }
    }

    #[test]
    fn a_bad_item_spoils_no_other() {
        let good = r#"{"resource":"security/incidents/1"}"#;
        let long = format!(r#"{{"resource":"security/incidents/{}"}}"#, "9".repeat(513));
        for bad in [
            "7",
            "null",
            "[]",
            r#"{"resource":7}"#,
            r#"{"resource":"security/incidents","resourceData":{"id":"\ud800"}}"#,
            r#"{"resource":"a","resource":"b"}"#,
            &long,
        ] {
            let read = abouts(&format!(r#"{{"value":[{good},{bad},{good}],"validationTokens":[]}}"#));
            assert_eq!(read, [incident("1"), About::Nothing, incident("1")], "{bad}");
        }
    }

    #[test]
    fn what_is_encrypted_stays_so_whatever_it_lacks() {
        let body = r#"{"value":[{"encryptedContent":{}},{"encryptedContent":null},{"resource":7,
            "encryptedContent":{"data":"d"}},{}],"validationTokens":["a",7,null,"b"]}"#;
        let read = graph(body.as_bytes()).unwrap();
        let sealed: Vec<bool> = read.items.iter().map(|item| item.sealed.is_some()).collect();
        assert_eq!(sealed, [true, false, false, false]);
        assert_eq!(read.validation_tokens, ["a", "b"]);
        for odd in ["7", "null", "{}", r#""a""#] {
            let body = format!(r#"{{"value":[],"validationTokens":{odd}}}"#);
            assert_eq!(graph(body.as_bytes()), Ok(GraphNotice::default()), "{odd}");
        }
    }

    #[test]
    fn an_opened_resource_says_more_than_its_item() {
        let alert = || About::Alert("a".into());
        for (item, resource, abouts) in [
            (incident("1"), r#"{"id":"2"}"#, vec![incident("2")]),
            (incident("1"), "{}", vec![incident("1")]),
            (
                About::Nothing,
                r##"{"@odata.type":"#microsoft.graph.security.incident","id":"3"}"##,
                vec![incident("3")],
            ),
            (alert(), r#"{"id":"b","incidentId":"4"}"#, vec![incident("4")]),
            (alert(), r#"{"id":"b","incidentIds":["4","5"]}"#, vec![incident("4"), incident("5")]),
            (alert(), r#"{"id":"b","incidentId":null}"#, vec![About::Alert("b".into())]),
            (alert(), r#"{}"#, vec![alert()]),
            (
                incident("1"),
                r##"{"@odata.type":"#microsoft.graph.security.alert","id":"b"}"##,
                vec![About::Alert("b".into())],
            ),
            (About::Other, r#"{"id":"b"}"#, vec![About::Other]),
            (alert(), "[]", vec![About::Nothing]),
            (alert(), "not JSON", vec![About::Nothing]),
            (alert(), r#"{"incidentId":7}"#, vec![About::Nothing]),
        ] {
            assert_eq!(opened(&item, resource.as_bytes()), abouts, "{item:?} {resource}");
        }
    }

    #[test]
    fn what_is_no_notification_is_refused() {
        let deep = format!(r#"{{"value":[],"x":{}{}}}"#, "[".repeat(200), "]".repeat(200));
        for (body, refusal) in
            [("", Unreadable::NotJson), ("{", Unreadable::NotJson), (&deep, Unreadable::TooDeep)]
        {
            assert_eq!(playbook(body.as_bytes()), Err(refusal), "{body}");
            assert_eq!(graph(body.as_bytes()), Err(refusal), "{body}");
        }
        for body in ["[]", "7", r#""text""#, "null", "[null,null,null]"] {
            assert!(matches!(graph(body.as_bytes()), Err(Unreadable::NotA(_))), "{body}");
            assert!(matches!(playbook(body.as_bytes()), Err(Unreadable::NotA(_))), "{body}");
        }
        for body in ["{}", r#"{"value":null}"#, r#"{"value":{}}"#] {
            assert!(matches!(graph(body.as_bytes()), Err(Unreadable::NotA(_))), "{body}");
        }
    }

    #[test]
    fn a_playbook_names_its_incident_in_either_spelling() {
        let read = playbook(
            br#"{"workspaceInfo":{"SubscriptionId":"S","ResourceGroupName":"G","WorkspaceName":"W"},
                "Object":{"name":"n","etag":"\"e\"","properties":{"title":"\ud800"}}}"#,
        )
        .unwrap();
        assert_eq!(read.incident.as_deref(), Some("n"));
        assert_eq!(read.version.as_deref(), Some("\"e\""));
        assert_eq!(read.workspace.unwrap().workspace_name, "W");
        for (object, name) in [
            (r#"{"id":"/subscriptions/s/Incidents/x"}"#, Some("x")),
            (r#"{"name":"\ud800"}"#, None),
            (r#"{"name":7}"#, None),
            (r#"{}"#, None),
            ("null", None),
        ] {
            let read = playbook(format!(r#"{{"object":{object}}}"#).as_bytes()).unwrap();
            assert_eq!(read.incident.as_deref(), name, "{object}");
        }
    }
}
