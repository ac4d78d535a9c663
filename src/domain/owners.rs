//! Who a person is on the other side. Defender keeps an owner as free text, Sentinel as a person of the workspace's
//! tenant; the two may be two directories. Decided here, in this order: the explicit map, the rewriting of domains,
//! what the directories said (looked up beforehand: [`questions`], [`People`]), the fallback.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::mapping::plain_option;
use super::model::{SentinelOwner, Side};

/// How a route carries owners across.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerPolicy {
    /// Defender's text, and Sentinel's user principal name, mail or object id. Compared without case; the first entry
    /// that fits wins, in either direction. An entry is believed even where a directory does not know the person.
    pub map: Vec<(String, String)>,
    /// Defender's domain and Sentinel's.
    pub rewrite: Vec<(String, String)>,
    /// Whether the directories are asked.
    pub lookup: bool,
    /// For people who do not exist on the other side: whom neither map nor rewriting names and, where directories are
    /// asked, whom the other side's does not have. Names that a directory could not be asked about go as they are.
    pub fallback: Fallback,
}

/// What becomes of people who do not exist on the other side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// The text goes as it is.
    #[default]
    AsIs,
    /// The field is left alone, and that is reported.
    Leave,
    /// This person takes it. In Sentinel's words; for Defender they pass through the map and the rewriting.
    Owner(String),
    /// Nobody is assigned, and a label of this prefix and the name says who it was.
    Label(String),
}

/// What a directory knows of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The object id.
    pub object_id: String,
    /// `userPrincipalName`: groups have none.
    pub upn: Option<String>,
    /// `mail`.
    pub mail: Option<String>,
    /// `displayName`.
    pub display_name: Option<String>,
    /// A user or a group.
    pub kind: PersonKind,
}

/// What somebody is, as Sentinel's `ownerType` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PersonKind {
    /// A user.
    User,
    /// A group.
    Group,
}

/// What a directory said about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is one.
    Found(Person),
    /// There is none.
    Missing,
    /// It would not say: refused, or out of reach.
    Unknown,
}

/// One thing to ask a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Question {
    /// Whose directory: Defender's tenant, or the tenant that the workspace belongs to.
    pub directory: Side,
    /// A user principal name or an object id.
    pub name: String,
}

/// What the directories said. Names that were never asked about are [`Answer::Unknown`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct People {
    answers: HashMap<(Side, String), Answer>,
}

impl People {
    /// Notes an answer under the name that was asked.
    pub fn insert(&mut self, directory: Side, name: &str, answer: Answer) {
        self.answers.insert((directory, folded(name)), answer);
    }

    /// What was answered.
    pub fn answer(&self, directory: Side, name: &str) -> &Answer {
        self.answers.get(&(directory, folded(name))).unwrap_or(&Answer::Unknown)
    }

    fn found(&self, directory: Side, name: &str) -> Option<&Person> {
        match self.answer(directory, name) {
            Answer::Found(person) => Some(person),
            Answer::Missing | Answer::Unknown => None,
        }
    }
}

/// What became of an owner on the way across.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapped<T> {
    /// This is the one.
    To(T),
    /// The person does not exist there: this stands for them.
    Instead {
        /// What to write.
        value: T,
        /// For the report.
        why: Unmapped,
        /// A label (in Sentinel) or tag (in Defender) that names the person.
        label: Option<String>,
    },
    /// Nothing is to be written.
    Leave(Unmapped),
}

impl<T> Mapped<T> {
    /// What to write, if anything.
    pub fn value(&self) -> Option<&T> {
        match self {
            Mapped::To(value) | Mapped::Instead { value, .. } => Some(value),
            Mapped::Leave(_) => None,
        }
    }

    /// What to report, if anything.
    pub fn unmapped(&self) -> Option<&Unmapped> {
        match self {
            Mapped::To(_) => None,
            Mapped::Instead { why, .. } | Mapped::Leave(why) => Some(why),
        }
    }
}

/// An owner who has no counterpart: a line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unmapped {
    /// The side that has the owner.
    pub side: Side,
    /// As that side calls them.
    pub name: String,
    /// Why they have no counterpart.
    pub why: Why,
}

/// Why an owner has no counterpart on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Neither the map nor the rewriting of domains names them.
    NoRule,
    /// The other side's directory does not have them.
    NotInDirectory,
    /// Their own directory has them no more.
    Deleted,
    /// A display name: several people may have it, and nobody can be looked up by it.
    Ambiguous,
    /// Sentinel has nothing but an object id, and the directory may not be asked.
    OnlyAnId,
    /// The same, and the directory would not say.
    NotAsked,
    /// The directory knows the object id, and no name that Defender could show.
    Nameless,
}

impl Why {
    /// The short form, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Why::NoRule => "no-rule",
            Why::NotInDirectory => "not-in-directory",
            Why::Deleted => "deleted",
            Why::Ambiguous => "ambiguous",
            Why::OnlyAnId => "only-an-id",
            Why::NotAsked => "not-asked",
            Why::Nameless => "nameless",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::NoRule => "is named by neither the map nor the rewriting of domains",
            Why::NotInDirectory => "is not in the directory of the other side's tenant",
            Why::Deleted => "is no longer in the directory of the workspace's tenant",
            Why::Ambiguous => "is a display name, by which nobody can be looked up",
            Why::OnlyAnId => "has only an object id, and the directory is not asked",
            Why::NotAsked => "has only an object id, and the directory could not be asked",
            Why::Nameless => "has no name in the directory",
        })
    }
}

impl Unmapped {
    /// Whether a rule names them by now, so that they cross as soon as they are looked at again.
    pub fn is_ruled(&self, policy: &OwnerPolicy) -> bool {
        match self.side {
            // What was rewritten is looked up all the same.
            Side::Defender => {
                mapped(&self.name, policy).is_some()
                    || (!policy.lookup && rewritten(&self.name, policy).is_some())
            }
            Side::Sentinel => {
                let owner = named(&self.name);
                mapped_back(&names(&owner), policy).is_some() || rewritten_back(&owner, policy).is_some()
            }
        }
    }

    /// The line of `[routes.owners]` that would give them a counterpart. What only a person knows stands in capitals.
    pub fn cure(&self, policy: &OwnerPolicy) -> String {
        let text = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        if matches!(self.why, Why::OnlyAnId) && !policy.lookup {
            return "lookup = true".to_owned();
        }
        let (defender, sentinel) = match self.side {
            Side::Defender => (text(&self.name), "\"WHO THAT IS IN SENTINEL\"".to_owned()),
            Side::Sentinel => ("\"WHO THAT IS IN DEFENDER\"".to_owned(), text(&self.name)),
        };
        format!("map = {{ {defender} = {sentinel} }}")
    }
}

/// What must be asked before these two owners can be carried across or compared. Empty unless the policy says so.
pub fn questions(defender: Option<&str>, sentinel: &SentinelOwner, policy: &OwnerPolicy) -> Vec<Question> {
    let mut questions = Vec::new();
    if !policy.lookup {
        return questions;
    }
    let mut ask = |directory: Side, name: String| {
        let question = Question { directory, name };
        if (is_id(&question.name) || is_address(&question.name)) && !questions.contains(&question) {
            questions.push(question);
        }
    };
    if let Some(text) = plain_option(defender) {
        ask(Side::Sentinel, wanted_in_sentinel(&text, policy));
    }
    match (best_name(sentinel), plain_option(sentinel.object_id.as_deref())) {
        (Some(name), _) if mapped_back(&names(sentinel), policy).is_none() => {
            ask(Side::Defender, rewritten_back(sentinel, policy).unwrap_or_else(|| home(&name)));
        }
        (None, Some(id)) => ask(Side::Sentinel, id),
        _ => {}
    }
    if let Fallback::Owner(name) = &policy.fallback
        && !questions.is_empty()
    {
        let question = Question { directory: Side::Sentinel, name: name.clone() };
        if (is_id(name) || is_address(name)) && !questions.contains(&question) {
            questions.push(question);
        }
    }
    questions
}

/// Sentinel's owner for Defender's text.
pub fn to_sentinel(owner: Option<&str>, people: &People, policy: &OwnerPolicy) -> Mapped<SentinelOwner> {
    let Some(text) = plain_option(owner) else { return Mapped::To(SentinelOwner::default()) };
    if let Some(name) = mapped(&text, policy) {
        return Mapped::To(sentinel_owner(name, people, policy));
    }
    let rewritten = rewritten(&text, policy);
    let known = rewritten.is_some() || is_fallback(&text, policy);
    let target = rewritten.unwrap_or_else(|| text.clone());
    let why = if policy.lookup {
        let wanted = wanted_in_sentinel(&text, policy);
        match people.answer(Side::Sentinel, &wanted) {
            Answer::Found(person) => return Mapped::To(owner_of(person)),
            Answer::Missing => Why::NotInDirectory,
            // A display name cannot be looked up: nobody of that name can be assigned.
            Answer::Unknown if !is_id(&wanted) && !is_address(&wanted) => Why::Ambiguous,
            Answer::Unknown => return Mapped::To(sentinel_owner(&target, people, policy)),
        }
    } else if known || policy.fallback == Fallback::AsIs {
        return Mapped::To(sentinel_owner(&target, people, policy));
    } else {
        Why::NoRule
    };
    let why = Unmapped { side: Side::Defender, name: text.clone(), why };
    match &policy.fallback {
        // What was rewritten stays so, or it could not be told apart on its way back.
        Fallback::AsIs => Mapped::Instead { value: named(&target), why, label: None },
        Fallback::Leave => Mapped::Leave(why),
        Fallback::Owner(name) => {
            Mapped::Instead { value: sentinel_owner(name, people, policy), why, label: None }
        }
        Fallback::Label(prefix) => {
            Mapped::Instead { value: SentinelOwner::default(), why, label: Some(format!("{prefix}{text}")) }
        }
    }
}

/// Defender's text for Sentinel's owner.
pub fn to_defender(owner: &SentinelOwner, people: &People, policy: &OwnerPolicy) -> Mapped<Option<String>> {
    if is_nobody(owner) {
        return Mapped::To(None);
    }
    let owner = &known_by_id(owner, people, policy);
    if let Some(text) = mapped_back(&names(owner), policy) {
        return Mapped::To(Some(text));
    }
    let Some(name) = best_name(owner) else {
        let id = owner.object_id.clone().unwrap_or_default();
        let why = match people.answer(Side::Sentinel, &id) {
            _ if !policy.lookup => Why::OnlyAnId,
            Answer::Missing => Why::Deleted,
            Answer::Unknown => Why::NotAsked,
            Answer::Found(_) => Why::Nameless,
        };
        return Mapped::Leave(Unmapped { side: Side::Sentinel, name: id, why });
    };
    let rewritten = rewritten_back(owner, policy);
    let known = rewritten.is_some() || names(owner).iter().any(|name| is_fallback(name, policy));
    let text = rewritten.unwrap_or_else(|| if policy.lookup { home(&name) } else { name.clone() });
    let why = if known {
        return Mapped::To(Some(text));
    } else if policy.lookup {
        match people.answer(Side::Defender, &text) {
            Answer::Found(_) => return Mapped::To(Some(text)),
            Answer::Missing => Why::NotInDirectory,
            Answer::Unknown if !is_id(&text) && !is_address(&text) => Why::Ambiguous,
            Answer::Unknown => return Mapped::To(Some(text)),
        }
    } else if policy.fallback == Fallback::AsIs {
        return Mapped::To(Some(text));
    } else {
        Why::NoRule
    };
    let why = Unmapped { side: Side::Sentinel, name: name.clone(), why };
    match &policy.fallback {
        Fallback::AsIs => Mapped::Instead { value: Some(text), why, label: None },
        Fallback::Leave => Mapped::Leave(why),
        Fallback::Owner(person) => {
            let person = named(person);
            let text = mapped_back(&names(&person), policy)
                .or_else(|| rewritten_back(&person, policy))
                .or_else(|| best_name(&known_by_id(&person, people, policy)));
            match text {
                Some(text) => Mapped::Instead { value: Some(text), why, label: None },
                None => Mapped::Leave(why),
            }
        }
        Fallback::Label(prefix) => {
            Mapped::Instead { value: None, why, label: Some(format!("{prefix}{name}")) }
        }
    }
}

/// Whether the two are in step: one is what the other becomes on its way across, in either direction.
pub fn same(defender: Option<&str>, sentinel: &SentinelOwner, people: &People, policy: &OwnerPolicy) -> bool {
    let text = plain_option(defender);
    let sentinel = &known_by_id(sentinel, people, policy);
    let there = to_sentinel(text.as_deref(), people, policy);
    if there.value().is_some_and(|owner| same_owner(&known_by_id(owner, people, policy), sentinel)) {
        return true;
    }
    let back = to_defender(sentinel, people, policy);
    if back.value().is_some_and(|back| back.as_deref().map(identity) == text.as_deref().map(identity)) {
        return true;
    }
    // One name on both sides is one person, unless the rules say that it is somebody else's over there.
    text.is_some_and(|text| {
        mapped(&text, policy).is_none()
            && rewritten(&text, policy).is_none()
            && mapped_back(&names(sentinel), policy).is_none()
            && rewritten_back(sentinel, policy).is_none()
            && names(sentinel).iter().any(|name| identity(name) == identity(&text))
    })
}

// ---- names -------------------------------------------------------------------------------------------------------

/// A name for comparing: without case, without the spaces that hands and tables leave.
fn folded(name: &str) -> String {
    name.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Who a name means: folded, and a guest by the address that they have at home.
fn identity(name: &str) -> String {
    folded(&home(name))
}

/// The home address of a guest (`alice_contoso.com#EXT#@fabrikam.onmicrosoft.com` is alice@contoso.com); any other
/// name as it is.
fn home(name: &str) -> String {
    let name = name.trim();
    // ASCII folding keeps the positions.
    let guest = name.to_ascii_lowercase().find("#ext#@").and_then(|at| name[..at].rsplit_once('_'));
    match guest {
        Some((local, domain)) if !local.is_empty() && domain.contains('.') => format!("{local}@{domain}"),
        _ => name.to_owned(),
    }
}

fn address(name: &str) -> Option<(&str, &str)> {
    let (local, domain) = name.rsplit_once('@')?;
    let plain = !local.is_empty() && !domain.is_empty() && !name.contains(char::is_whitespace);
    plain.then_some((local, domain))
}

fn is_address(name: &str) -> bool {
    address(name).is_some()
}

fn is_id(name: &str) -> bool {
    name.len() == 36 && Uuid::try_parse(name).is_ok()
}

fn is_fallback(name: &str, policy: &OwnerPolicy) -> bool {
    matches!(&policy.fallback, Fallback::Owner(owner) if identity(owner) == identity(name))
}

/// An owner by a name alone.
fn named(name: &str) -> SentinelOwner {
    let name = name.trim().to_owned();
    if is_id(&name) {
        SentinelOwner { object_id: Some(name), ..SentinelOwner::default() }
    } else if name.contains('@') {
        SentinelOwner { upn: Some(name), ..SentinelOwner::default() }
    } else {
        SentinelOwner { name: Some(name), ..SentinelOwner::default() }
    }
}

fn owner_of(person: &Person) -> SentinelOwner {
    let Person { object_id, upn, mail, display_name, kind } = person;
    SentinelOwner {
        object_id: Some(object_id.clone()),
        email: mail.clone(),
        upn: upn.clone(),
        name: display_name.clone(),
        group: *kind == PersonKind::Group,
    }
}

/// An owner by a name of Sentinel's, in full where the directory knows it.
fn sentinel_owner(name: &str, people: &People, policy: &OwnerPolicy) -> SentinelOwner {
    let person = policy.lookup.then(|| people.found(Side::Sentinel, name)).flatten();
    person.map_or_else(|| named(name), owner_of)
}

/// The owner with the names that the directory has under the object id, where it has none of its own.
fn known_by_id(owner: &SentinelOwner, people: &People, policy: &OwnerPolicy) -> SentinelOwner {
    if policy.lookup
        && best_name(owner).is_none()
        && let Some(person) = owner.object_id.as_deref().and_then(|id| people.found(Side::Sentinel, id))
    {
        return SentinelOwner { object_id: owner.object_id.clone(), ..owner_of(person) };
    }
    owner.clone()
}

fn best_name(owner: &SentinelOwner) -> Option<String> {
    [&owner.upn, &owner.email, &owner.name].into_iter().find_map(|name| plain_option(name.as_deref()))
}

/// Every name of an owner, the best first.
fn names(owner: &SentinelOwner) -> Vec<String> {
    let members = [&owner.upn, &owner.email, &owner.name, &owner.object_id];
    members.into_iter().filter_map(|name| plain_option(name.as_deref())).collect()
}

fn is_nobody(owner: &SentinelOwner) -> bool {
    names(owner).is_empty()
}

/// Two object ids decide; without them one name in common is enough.
fn same_owner(a: &SentinelOwner, b: &SentinelOwner) -> bool {
    let id = |owner: &SentinelOwner| plain_option(owner.object_id.as_deref()).map(|id| folded(&id));
    if let (Some(a), Some(b)) = (id(a), id(b)) {
        return a == b;
    }
    let (a, b) = (names(a), names(b));
    (a.is_empty() && b.is_empty()) || a.iter().any(|a| b.iter().any(|b| identity(a) == identity(b)))
}

// ---- rules -------------------------------------------------------------------------------------------------------

fn mapped<'p>(text: &str, policy: &'p OwnerPolicy) -> Option<&'p str> {
    let wanted = identity(text);
    policy
        .map
        .iter()
        .find(|(defender, _)| identity(defender) == wanted)
        .map(|(_, sentinel)| sentinel.as_str())
}

fn mapped_back(names: &[String], policy: &OwnerPolicy) -> Option<String> {
    let entry =
        policy.map.iter().find(|(_, sentinel)| names.iter().any(|name| identity(name) == identity(sentinel)));
    entry.and_then(|(defender, _)| plain_option(Some(defender)))
}

fn same_domain(domain: &str, rule: &str) -> bool {
    domain.eq_ignore_ascii_case(rule.trim().trim_start_matches('@'))
}

fn rewritten(text: &str, policy: &OwnerPolicy) -> Option<String> {
    let home = home(text);
    let (local, domain) = address(&home)?;
    let (_, to) = policy.rewrite.iter().find(|(from, _)| same_domain(domain, from))?;
    Some(format!("{local}@{}", to.trim().trim_start_matches('@')))
}

fn rewritten_back(owner: &SentinelOwner, policy: &OwnerPolicy) -> Option<String> {
    names(owner).iter().find_map(|name| {
        let home = home(name);
        let (local, domain) = address(&home)?;
        let (to, _) = policy.rewrite.iter().find(|(_, from)| same_domain(domain, from))?;
        Some(format!("{local}@{}", to.trim().trim_start_matches('@')))
    })
}

/// What the directory of the workspace's tenant is asked for Defender's text.
fn wanted_in_sentinel(text: &str, policy: &OwnerPolicy) -> String {
    mapped(text, policy)
        .map(|name| name.trim().to_owned())
        .or_else(|| rewritten(text, policy))
        .unwrap_or_else(|| home(text))
}
