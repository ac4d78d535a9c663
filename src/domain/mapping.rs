//! Each side's words in the other's. Every function says what does not fit by answering `None`: then the field is
//! left as it is on the other side. The table of the native connector (`sentinel.md` §5) is the base, so that both
//! paths agree; what it loses is kept by the planner, which translates only when a side really moved.

use std::fmt;

use time::OffsetDateTime;

use crate::domain::merge::Names;
use crate::domain::model::{
    DefenderClassification, DefenderDetermination, DefenderIncident, DefenderSays, DefenderSeverity,
    DefenderStatus, Facts, Label, SentinelClassification, SentinelOwner, SentinelReason, SentinelSays,
    SentinelSeverity, SentinelStatus,
};
use crate::domain::policy::{LabelRules, Policy, REDIRECTED};

/// Sentinel's limit on a description (`sentinel.md` §12), counted here in UTF-16 units, the stricter reading.
pub const DESCRIPTION_LIMIT: usize = 5_000;

const BLOCK_START: &str = "--- Lockstep ---";
const BLOCK_END: &str = "--- end ---";
const CUT_MARK: &str = "… [cut by Lockstep: the whole text is in Defender]";
/// How much of a description is kept free for our own block, so that what fits does not depend on what it says.
const BLOCK_ROOM: usize = 1_200;
/// The longest line of our own block.
const BLOCK_LINE: usize = 240;

/// Text as it is compared: line ends unified, surrounding space gone.
pub fn plain(text: &str) -> String {
    text.replace("\r\n", "\n").trim().to_owned()
}

/// Optional text as it is compared: empty is the same as missing.
pub fn plain_option(text: Option<&str>) -> Option<String> {
    text.map(plain).filter(|text| !text.is_empty())
}

// ---- title -------------------------------------------------------------------------------------------------------

/// Sentinel's title for Defender's. Sentinel requires one, so a missing name has none.
pub fn title_to_sentinel(title: Option<&str>, policy: &Policy) -> Option<String> {
    plain_option(title).map(|title| plain(&policy.title.wrap(&title)))
}

/// Defender's title for Sentinel's; `None` where it is empty, or does not follow the route's template.
pub fn title_to_defender(title: &str, policy: &Policy) -> Option<String> {
    plain_option(policy.title.unwrap(&plain(title)))
}

/// The title of a twin whose incident has no name.
pub fn title_of_nameless(incident_id: &str) -> String {
    format!("Defender incident {incident_id}")
}

// ---- description -------------------------------------------------------------------------------------------------

/// A Sentinel description without our own block: what people and programs said there.
pub fn description_without_block(description: Option<&str>) -> Option<String> {
    let text = description?.replace("\r\n", "\n");
    let Some(start) = text.find(BLOCK_START) else { return plain_option(Some(&text)) };
    let after = &text[start + BLOCK_START.len()..];
    let rest = after.find(BLOCK_END).map_or("", |end| &after[end + BLOCK_END.len()..]);
    let (before, rest) = (text[..start].trim(), rest.trim());
    plain_option(Some(&match (before.is_empty(), rest.is_empty()) {
        (false, false) => format!("{before}\n{rest}"),
        _ => format!("{before}{rest}"),
    }))
}

/// Our own block in a Sentinel description, as it stands there.
fn block_of(description: Option<&str>) -> Option<String> {
    let text = description?.replace("\r\n", "\n");
    let start = text.find(BLOCK_START)?;
    let end = text[start..].find(BLOCK_END).map_or(text.len(), |end| start + end + BLOCK_END.len());
    Some(text[start..end].trim().to_owned())
}

/// The text that people and programs said, and a block, as one description.
pub fn description_of(text: Option<&str>, block: Option<&str>) -> Option<String> {
    match (plain_option(text), block) {
        (Some(text), Some(block)) => Some(format!("{text}\n\n{block}")),
        (text, block) => text.or(block.map(str::to_owned)),
    }
}

/// A description with the text of one and the block of another.
pub fn description_joined(text_of: Option<&str>, block_in: Option<&str>) -> Option<String> {
    description_of(description_without_block(text_of).as_deref(), block_of(block_in).as_deref())
}

/// Our own block: where the incident lives in Defender, and what its alerts come to.
fn block(incident_id: &str, web_url: Option<&str>, facts: Option<&Facts>) -> String {
    let mut lines = vec![BLOCK_START.to_owned(), format!("Defender incident {incident_id}")];
    lines.extend(web_url.map(str::to_owned).filter(|url| units(url) <= 2 * BLOCK_LINE));
    if let Some(facts) = facts.filter(|facts| facts.total() > 0) {
        let each: Vec<String> = facts.alerts.iter().map(|(severity, n)| format!("{n} {severity}")).collect();
        lines.push(format!("Alerts: {} ({})", facts.total(), each.join(", ")));
        let lists =
            [("Products", &facts.products), ("Tactics", &facts.tactics), ("Techniques", &facts.techniques)];
        for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            lines.push(format!("{name}: {}", list.join(", ")));
        }
    }
    // A name that holds our own marks must not end the block early.
    for line in &mut lines[1..] {
        let clean = line.replace(BLOCK_START, "").replace(BLOCK_END, "").replace(['\r', '\n'], " ");
        *line = if units(&clean) > 2 * BLOCK_LINE { cut(&clean, BLOCK_LINE) } else { clean };
    }
    lines.push(BLOCK_END.to_owned());
    lines.join("\n")
}

/// The beginning of a text, with a mark that something is missing.
fn cut(text: &str, most: usize) -> String {
    let mut used = 1;
    let kept: String = text
        .chars()
        .take_while(|c| {
            used += c.len_utf16();
            used <= most
        })
        .collect();
    format!("{}…", kept.trim_end())
}

/// Defender's text cut to what a twin has room for. Whole when it fits.
pub fn description_that_fits(text: Option<&str>) -> Option<String> {
    let text = plain_option(text)?;
    let room = DESCRIPTION_LIMIT - BLOCK_ROOM;
    if units(&text) <= room {
        return Some(text);
    }
    let kept = cut(&text, room - units(CUT_MARK));
    Some(format!("{}{CUT_MARK}", kept.trim_end_matches('…').trim_end()))
}

/// Defender's text for Sentinel's (already without our block). `None` where it was cut: cut text is never copied back.
pub fn description_to_defender(text: Option<&str>) -> Option<Option<String>> {
    match text {
        Some(text) if text.contains(CUT_MARK) => None,
        other => Some(other.map(str::to_owned)),
    }
}

fn units(text: &str) -> usize {
    text.chars().map(char::len_utf16).sum()
}

// ---- severity ----------------------------------------------------------------------------------------------------

/// One to one; `unknown` and new words have no counterpart.
pub fn severity_to_sentinel(severity: &DefenderSeverity) -> Option<SentinelSeverity> {
    match severity {
        DefenderSeverity::Informational => Some(SentinelSeverity::Informational),
        DefenderSeverity::Low => Some(SentinelSeverity::Low),
        DefenderSeverity::Medium => Some(SentinelSeverity::Medium),
        DefenderSeverity::High => Some(SentinelSeverity::High),
        DefenderSeverity::Unknown | DefenderSeverity::Other(_) => None,
    }
}

/// One to one; new words have no counterpart.
pub fn severity_to_defender(severity: &SentinelSeverity) -> Option<DefenderSeverity> {
    match severity {
        SentinelSeverity::Informational => Some(DefenderSeverity::Informational),
        SentinelSeverity::Low => Some(DefenderSeverity::Low),
        SentinelSeverity::Medium => Some(DefenderSeverity::Medium),
        SentinelSeverity::High => Some(DefenderSeverity::High),
        SentinelSeverity::Other(_) => None,
    }
}

// ---- status ------------------------------------------------------------------------------------------------------

/// `active` is New, `inProgress` and `awaitingAction` are Active, `resolved` and `redirected` are Closed.
pub fn status_to_sentinel(status: &DefenderStatus) -> Option<SentinelStatus> {
    match status {
        DefenderStatus::Active => Some(SentinelStatus::New),
        DefenderStatus::InProgress | DefenderStatus::AwaitingAction => Some(SentinelStatus::Active),
        DefenderStatus::Resolved | DefenderStatus::Redirected => Some(SentinelStatus::Closed),
        DefenderStatus::Other(_) => None,
    }
}

/// New is `active`, Active is `inProgress` where Graph takes it (else `active`), Closed is `resolved`.
pub fn status_to_defender(status: &SentinelStatus, policy: &Policy) -> Option<DefenderStatus> {
    match status {
        SentinelStatus::New => Some(DefenderStatus::Active),
        SentinelStatus::Active if policy.in_progress_writable => Some(DefenderStatus::InProgress),
        SentinelStatus::Active => Some(DefenderStatus::Active),
        SentinelStatus::Closed => Some(DefenderStatus::Resolved),
        SentinelStatus::Other(_) => None,
    }
}

/// Whether the two already mean the same. Where Graph refuses `inProgress`, `active` also means Active.
pub fn status_same(defender: &DefenderStatus, sentinel: &SentinelStatus, policy: &Policy) -> bool {
    status_to_sentinel(defender).as_ref() == Some(sentinel)
        || (!policy.in_progress_writable
            && *defender == DefenderStatus::Active
            && *sentinel == SentinelStatus::Active)
}

// ---- owner -------------------------------------------------------------------------------------------------------

/// What identifies a Sentinel owner, for telling whether it moved: the best name there is, in lower case.
pub fn owner_key(owner: &SentinelOwner) -> Option<String> {
    [&owner.upn, &owner.email, &owner.name, &owner.object_id]
        .into_iter()
        .find_map(|member| plain_option(member.as_deref()))
        .map(|name| name.to_lowercase())
}

/// Sentinel's owner for Defender's free text: a user principal name where it looks like one, else a display name.
pub fn owner_to_sentinel(owner: Option<&str>) -> SentinelOwner {
    match plain_option(owner) {
        None => SentinelOwner::default(),
        Some(text) if text.contains('@') => SentinelOwner { upn: Some(text), ..SentinelOwner::default() },
        Some(text) => SentinelOwner { name: Some(text), ..SentinelOwner::default() },
    }
}

/// Defender's owner for Sentinel's. The outer `None`: only an object id is there, which Defender cannot show.
pub fn owner_to_defender(owner: &SentinelOwner) -> Option<Option<String>> {
    let name = [&owner.upn, &owner.email, &owner.name].into_iter().find_map(|m| plain_option(m.as_deref()));
    match (name, &owner.object_id) {
        (Some(name), _) => Some(Some(name)),
        (None, None) => Some(None),
        (None, Some(_)) => None,
    }
}

/// Whether both name the same person: Defender's text equals any of Sentinel's names, without case.
pub fn owner_same(defender: Option<&str>, sentinel: &SentinelOwner) -> bool {
    match plain_option(defender) {
        None => owner_key(sentinel).is_none(),
        Some(text) => [&sentinel.upn, &sentinel.email, &sentinel.name]
            .into_iter()
            .filter_map(|member| plain_option(member.as_deref()))
            .any(|name| name.to_lowercase() == text.to_lowercase()),
    }
}

// ---- verdict -----------------------------------------------------------------------------------------------------

/// Defender's verdict.
pub type DefenderVerdict = (DefenderClassification, DefenderDetermination);
/// Sentinel's verdict while Closed.
pub type SentinelVerdict = (SentinelClassification, Option<SentinelReason>);

/// The Sentinel classification that stands for a Defender one.
pub fn classification_to_sentinel(classification: &DefenderClassification) -> Option<SentinelClassification> {
    match classification {
        DefenderClassification::Unknown => Some(SentinelClassification::Undetermined),
        DefenderClassification::TruePositive => Some(SentinelClassification::TruePositive),
        DefenderClassification::FalsePositive => Some(SentinelClassification::FalsePositive),
        DefenderClassification::InformationalExpectedActivity => Some(SentinelClassification::BenignPositive),
        DefenderClassification::Other(_) => None,
    }
}

/// The reason that goes with a classification when nothing finer is known. Closed incidents always carry a valid pair.
pub fn default_reason(classification: &SentinelClassification) -> Option<SentinelReason> {
    match classification {
        SentinelClassification::TruePositive => Some(SentinelReason::SuspiciousActivity),
        SentinelClassification::BenignPositive => Some(SentinelReason::SuspiciousButExpected),
        SentinelClassification::FalsePositive => Some(SentinelReason::InaccurateData),
        SentinelClassification::Undetermined | SentinelClassification::Other(_) => None,
    }
}

/// Whether the portal offers this pair (`sentinel.md` §5).
pub fn valid_pair(classification: &SentinelClassification, reason: Option<&SentinelReason>) -> bool {
    match classification {
        SentinelClassification::Undetermined => reason.is_none(),
        SentinelClassification::TruePositive => reason == Some(&SentinelReason::SuspiciousActivity),
        SentinelClassification::BenignPositive => reason == Some(&SentinelReason::SuspiciousButExpected),
        SentinelClassification::FalsePositive => {
            matches!(reason, Some(SentinelReason::IncorrectAlertLogic | SentinelReason::InaccurateData))
        }
        SentinelClassification::Other(_) => true,
    }
}

/// Sentinel's verdict for Defender's; the determination has no counterpart.
pub fn verdict_to_sentinel(verdict: &DefenderVerdict) -> Option<SentinelVerdict> {
    let classification = classification_to_sentinel(&verdict.0)?;
    let reason = default_reason(&classification);
    Some((classification, reason))
}

/// Defender's verdict for Sentinel's, with the determination that the policy gives.
pub fn verdict_to_defender(verdict: &SentinelVerdict, policy: &Policy) -> Option<DefenderVerdict> {
    let classification = match &verdict.0 {
        SentinelClassification::Undetermined => DefenderClassification::Unknown,
        SentinelClassification::TruePositive => DefenderClassification::TruePositive,
        SentinelClassification::FalsePositive => DefenderClassification::FalsePositive,
        SentinelClassification::BenignPositive => DefenderClassification::InformationalExpectedActivity,
        SentinelClassification::Other(_) => return None,
    };
    let determination = policy.determination(&classification, verdict.1.as_ref());
    Some((classification, determination))
}

/// Whether the two verdicts mean the same: the classifications do; each side keeps its finer word.
pub fn verdict_same(defender: &DefenderVerdict, sentinel: &SentinelVerdict) -> bool {
    classification_to_sentinel(&defender.0).as_ref() == Some(&sentinel.0)
}

// ---- facts -------------------------------------------------------------------------------------------------------

/// What Sentinel is told and nobody edits, as it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Our block in the description.
    pub block: Option<String>,
    /// The earliest activity.
    pub first: Option<OffsetDateTime>,
    /// The latest activity.
    pub last: Option<OffsetDateTime>,
    /// Our own labels that nobody edits, in lower case.
    pub labels: Names,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alerts = self.block.as_deref().and_then(|block| block.lines().find(|l| l.starts_with("Alerts:")));
        f.write_str(alerts.unwrap_or(if self.block.is_some() { "a link" } else { "nothing" }))?;
        for label in &self.labels {
            write!(f, ", label {label}")?;
        }
        Ok(())
    }
}

/// What Sentinel is to be told of an incident; `None` when its alerts were not asked for.
pub fn facts_to_sentinel(
    incident_id: &str,
    web_url: Option<&str>,
    says: &DefenderSays,
    policy: &Policy,
) -> Option<Told> {
    let facts = says.facts.as_ref()?;
    Some(Told {
        block: Some(block(incident_id, web_url, Some(facts))),
        first: facts.first_activity,
        last: facts.last_activity,
        labels: fact_labels(says, &policy.labels).iter().map(|name| name.to_lowercase()).collect(),
    })
}

/// What Sentinel has been told.
pub fn facts_in_sentinel(says: &SentinelSays, rules: &LabelRules) -> Told {
    let labels = says.labels.iter().map(|label| label.name.trim());
    Told {
        block: block_of(says.description.as_deref()),
        first: instant(says.first_activity.as_deref()),
        last: instant(says.last_activity.as_deref()),
        labels: labels.filter(|name| rules.is_fact(name)).map(str::to_lowercase).collect(),
    }
}

/// Whether Sentinel has been told. Times that Defender does not give are Sentinel's own.
pub fn facts_same(to_tell: Option<&Told>, told: &Told) -> bool {
    to_tell.is_none_or(|to_tell| {
        to_tell.block == told.block
            && to_tell.labels == told.labels
            && (to_tell.first.is_none() || to_tell.first == told.first)
            && (to_tell.last.is_none() || to_tell.last == told.last)
    })
}

/// Tells it: the block, the times, the labels.
pub fn tell_facts(
    incident_id: &str,
    web_url: Option<&str>,
    says: &DefenderSays,
    policy: &Policy,
    to: &mut SentinelSays,
) {
    let text = description_without_block(to.description.as_deref());
    let block = block(incident_id, web_url, says.facts.as_ref());
    to.description = description_of(text.as_deref(), Some(&block));
    if let Some(facts) = &says.facts {
        let format = |at: OffsetDateTime| at.format(&time::format_description::well_known::Rfc3339).ok();
        to.first_activity = facts.first_activity.and_then(format).or(to.first_activity.take());
        to.last_activity = facts.last_activity.and_then(format).or(to.last_activity.take());
    }
    let wanted = fact_labels(says, &policy.labels);
    let has = |name: &str, list: &[String]| list.iter().any(|l| l.eq_ignore_ascii_case(name.trim()));
    to.labels.retain(|l| l.auto || !policy.labels.is_fact(&l.name) || has(&l.name, &wanted));
    for name in wanted {
        if !to.labels.iter().any(|label| label.name.trim().eq_ignore_ascii_case(&name)) {
            to.labels.push(Label { name, auto: false });
        }
    }
}

/// Our own labels that nobody edits: the route's, copies of system tags, and that the incident was merged away.
fn fact_labels(says: &DefenderSays, rules: &LabelRules) -> Vec<String> {
    let mut labels: Vec<String> = rules.route.iter().map(|label| label.trim().to_owned()).collect();
    if let (Some(prefix), Some(facts)) = (&rules.system, &says.facts) {
        labels.extend(facts.system_tags.iter().map(|tag| format!("{prefix}{}", tag.trim())));
    }
    if says.status == DefenderStatus::Redirected {
        labels.push(REDIRECTED.to_owned());
    }
    labels
}

fn instant(text: Option<&str>) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text?, &time::format_description::well_known::Rfc3339).ok()
}

// ---- determination -----------------------------------------------------------------------------------------------

/// The determination that a twin's label names, in the label's own word.
pub fn determination_label(labels: &[Label], rules: &LabelRules) -> Option<String> {
    let prefix = rules.determination.as_ref()?;
    let label = labels.iter().find(|label| rules.is_determination(&label.name))?;
    label.name.trim().get(prefix.len()..).map(|word| word.trim().to_owned())
}

/// The word of the label that keeps a determination in Sentinel. None is needed for the one that Sentinel's own words
/// would be translated to.
pub fn determination_to_sentinel(
    (classification, determination): &DefenderVerdict,
    reason: Option<&SentinelReason>,
    policy: &Policy,
) -> Option<String> {
    let named = DefenderDetermination::KNOWN.contains(determination)
        && *determination != DefenderDetermination::Unknown
        && *determination != policy.determination(classification, reason);
    named.then(|| determination.as_str().to_owned())
}

/// Puts the label that names a determination in the place of any other.
pub fn set_determination(labels: &mut Vec<Label>, word: Option<&str>, rules: &LabelRules) {
    let Some(prefix) = &rules.determination else { return };
    let name = word.map(|word| format!("{prefix}{word}"));
    let wanted = |label: &Label| name.as_ref().is_some_and(|name| label.name.eq_ignore_ascii_case(name));
    labels.retain(|label| label.auto || !rules.is_determination(&label.name) || wanted(label));
    if let Some(name) = &name
        && !labels.iter().any(wanted)
    {
        labels.push(Label { name: name.clone(), auto: false });
    }
}

// ---- tags --------------------------------------------------------------------------------------------------------

fn tag_key(name: &str, rules: &LabelRules) -> Option<String> {
    let name = name.trim();
    (!name.is_empty() && !rules.own(name)).then(|| name.to_lowercase())
}

/// Defender's tags as they are compared.
pub fn defender_tags(says: &DefenderSays, rules: &LabelRules) -> Names {
    says.tags.iter().filter_map(|tag| tag_key(tag, rules)).collect()
}

/// Sentinel's tags as they are compared: labels that people or programs set, less our own.
pub fn sentinel_tags(says: &SentinelSays, rules: &LabelRules) -> Names {
    let labels = says.labels.iter().filter(|label| !label.auto);
    labels.filter_map(|label| tag_key(&label.name, rules)).collect()
}

/// Defender's list with exactly the tags of `goal`, in its order and spelling, new ones at the end in Sentinel's.
pub fn tags_for_defender(
    goal: &Names,
    now: &DefenderSays,
    other: &SentinelSays,
    rules: &LabelRules,
) -> Vec<String> {
    let spelled = other.labels.iter().map(|label| label.name.as_str());
    listed(goal, now.tags.iter().map(String::as_str), spelled, rules)
}

/// Sentinel's labels with exactly the tags of `goal`; automatic labels and our own go back unchanged. A tag that the
/// system has set as an automatic label is there already.
pub fn labels_for_sentinel(
    goal: &Names,
    now: &[Label],
    other: &DefenderSays,
    rules: &LabelRules,
) -> Vec<Label> {
    let (auto, user): (Vec<&Label>, Vec<&Label>) = now.iter().partition(|label| label.auto);
    let mut goal = goal.clone();
    goal.retain(|key| {
        let spelled = |label: &&Label| label.name.trim().to_lowercase() == *key;
        !auto.iter().any(spelled) || user.iter().any(spelled)
    });
    let (user, spelled) = (user.iter().map(|l| l.name.as_str()), other.tags.iter().map(String::as_str));
    let names = listed(&goal, user, spelled, rules);
    auto.into_iter().cloned().chain(names.into_iter().map(|name| Label { name, auto: false })).collect()
}

/// `now` without what `goal` lacks (members that are no tags stay), then what is missing, as `spelled` writes it.
fn listed<'a>(
    goal: &Names,
    now: impl Iterator<Item = &'a str>,
    spelled: impl Iterator<Item = &'a str>,
    rules: &LabelRules,
) -> Vec<String> {
    let mut missing = goal.clone();
    let mut list: Vec<String> = Vec::new();
    for name in now {
        match tag_key(name, rules) {
            Some(key) if !goal.contains(&key) => {}
            Some(key) => {
                missing.remove(&key);
                list.push(name.to_owned());
            }
            None => list.push(name.to_owned()),
        }
    }
    for name in spelled {
        if let Some(key) = tag_key(name, rules)
            && missing.remove(&key)
        {
            list.push(name.trim().to_owned());
        }
    }
    list.extend(missing);
    list
}

// ---- a new twin --------------------------------------------------------------------------------------------------

/// What a new twin says: everything that Sentinel can express.
///
/// Severity `unknown` becomes Medium: the service requires one, and neither hiding nor shouting is right.
pub fn new_twin(incident: &DefenderIncident, policy: &Policy) -> SentinelSays {
    let says = &incident.says;
    let status = status_to_sentinel(&says.status).unwrap_or(SentinelStatus::New);
    let closed = status == SentinelStatus::Closed;
    let verdict = (says.classification.clone(), says.determination.clone());
    let (classification, reason) =
        verdict_to_sentinel(&verdict).unwrap_or((SentinelClassification::Undetermined, None));
    let title = plain_option(says.title.as_deref()).unwrap_or_else(|| title_of_nameless(&incident.id));
    let mut twin = SentinelSays {
        title: plain(&policy.title.wrap(&title)),
        description: description_that_fits(says.description.as_deref()),
        severity: severity_to_sentinel(&says.severity).unwrap_or(SentinelSeverity::Medium),
        status,
        owner: owner_to_sentinel(says.owner.as_deref()),
        classification: closed.then_some(classification),
        reason: reason.clone().filter(|_| closed),
        comment: if closed { plain_option(says.resolving_comment.as_deref()) } else { None },
        labels: labels_for_sentinel(&defender_tags(says, &policy.labels), &[], says, &policy.labels),
        first_activity: None,
        last_activity: None,
    };
    let word = determination_to_sentinel(&verdict, reason.as_ref(), policy);
    set_determination(&mut twin.labels, word.as_deref(), &policy.labels);
    tell_facts(&incident.id, incident.web_url.as_deref(), says, policy, &mut twin);
    twin
}
