//! What a notification is about. It is a hint and nothing more, so only identity is read from it: which incident, in
//! which tenant or workspace, and where it is named, which version. Pure: who sent it is judged elsewhere.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// An id longer than this is none of either service's.
const LONGEST_ID: usize = 512;
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
}

#[derive(Deserialize)]
struct Collection<'a> {
    #[serde(borrow)]
    value: Vec<Item<'a>>,
}

#[derive(Deserialize)]
struct LooseCollection<'a> {
    #[serde(borrow)]
    value: Vec<&'a RawValue>,
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
pub fn graph(body: &[u8]) -> Result<Vec<GraphItem>, Unreadable> {
    check_depth(body)?;
    if !begins_an_object(body) {
        serde_json::from_slice::<&RawValue>(body).map_err(|_| Unreadable::NotJson)?;
        return Err(Unreadable::NotA("a collection of notifications: an object with a list named `value`"));
    }
    match serde_json::from_slice::<Collection<'_>>(body) {
        Ok(collection) => Ok(collection.value.into_iter().map(graph_item).collect()),
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
            };
            let read =
                |raw: &RawValue| serde_json::from_str(raw.get()).map_or_else(|_| nothing(), graph_item);
            Ok(loose.value.into_iter().map(read).collect())
        }
    }
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
    }
}

fn about_resource(resource: Option<&str>, data: Option<&ResourceData<'_>>) -> About {
    let path = resource.or_else(|| data.and_then(|data| text(&data.path)));
    let kind = data.and_then(|data| text(&data.kind));
    let from_path = match path.map(incident_in_path) {
        Some(Some(id)) => id,
        Some(None) => return About::Other,
        None if kind.is_some_and(|kind| kind.to_ascii_lowercase().ends_with("security.incident")) => None,
        None if kind.is_some() => return About::Other,
        None => return About::Nothing,
    };
    match data.and_then(|data| text(&data.id)).map(Cow::Borrowed).or(from_path) {
        Some(id) if is_id(&id) => About::Incident(id.into_owned()),
        _ => About::Nothing,
    }
}

/// The id in `security/incidents/29` or `/security/incidents('29')`, with or without a host and version before it.
/// The outer `None`: not about incidents. The inner one: about incidents, without an id.
fn incident_in_path(path: &str) -> Option<Option<Cow<'_, str>>> {
    const COLLECTION: &[u8] = b"security/incidents";
    let path = path.split('?').next().unwrap_or(path);
    let start = path
        .as_bytes()
        .windows(COLLECTION.len())
        .position(|window| window.eq_ignore_ascii_case(COLLECTION))?;
    if start > 0 && path.as_bytes()[start - 1] != b'/' {
        return None;
    }
    // The window is ASCII, so its end is the beginning of a character.
    let rest = &path[start + COLLECTION.len()..];
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
        graph(body.as_bytes()).unwrap().into_iter().map(|item| item.about).collect()
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
