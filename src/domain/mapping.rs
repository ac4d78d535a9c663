//! Each side's words in the other's. Every function says what does not fit by answering `None`: then the field is
//! left as it is on the other side. The table of the native connector (`sentinel.md` §5) is the base, so that both
//! paths agree; what it loses is kept by the planner, which translates only when a side really moved.

use crate::domain::merge::Names;
use crate::domain::model::{
    DefenderClassification, DefenderDetermination, DefenderIncident, DefenderSays, DefenderSeverity,
    DefenderStatus, Label, SentinelClassification, SentinelOwner, SentinelReason, SentinelSays,
    SentinelSeverity, SentinelStatus,
};
use crate::domain::policy::Policy;

/// Sentinel's limit on a description (`sentinel.md` §12), counted here in UTF-16 units, the stricter reading.
pub const DESCRIPTION_LIMIT: usize = 5_000;

const BLOCK_START: &str = "--- Lockstep ---";
const BLOCK_END: &str = "--- end ---";
const CUT_MARK: &str = "… [cut by Lockstep: the whole text is in Defender]";
/// Set by Defender's engine on both sides when an incident is merged away; never a tag.
const REDIRECTED: &str = "Redirected";

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
pub fn title_to_sentinel(title: Option<&str>) -> Option<String> {
    plain_option(title)
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

/// Our own block: where the incident lives in Defender. It holds nothing that changes.
fn block(incident_id: &str, web_url: Option<&str>) -> String {
    let link = web_url.map(|url| format!("\n{url}")).unwrap_or_default();
    format!("{BLOCK_START}\nDefender incident {incident_id}{link}\n{BLOCK_END}")
}

/// Defender's text cut to what a twin of this incident has room for. Whole when it fits.
pub fn description_that_fits(text: Option<&str>, incident_id: &str, web_url: Option<&str>) -> Option<String> {
    let text = plain_option(text)?;
    let room = DESCRIPTION_LIMIT.saturating_sub(units(&block(incident_id, web_url)) + 2);
    if units(&text) <= room {
        return Some(text);
    }
    let room = room.saturating_sub(units(CUT_MARK));
    let mut used = 0;
    let kept: String = text
        .chars()
        .take_while(|c| {
            used += c.len_utf16();
            used <= room
        })
        .collect();
    Some(format!("{}{CUT_MARK}", kept.trim_end()))
}

/// The whole Sentinel description: the text that fits, then our block.
pub fn description_to_sentinel(text: Option<&str>, incident_id: &str, web_url: Option<&str>) -> String {
    let block = block(incident_id, web_url);
    match description_that_fits(text, incident_id, web_url) {
        Some(text) => format!("{text}\n\n{block}"),
        None => block,
    }
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

// ---- tags --------------------------------------------------------------------------------------------------------

fn tag_key(name: &str) -> Option<String> {
    let name = name.trim();
    (!name.is_empty() && !name.eq_ignore_ascii_case(REDIRECTED)).then(|| name.to_lowercase())
}

/// Defender's tags as they are compared.
pub fn defender_tags(says: &DefenderSays) -> Names {
    says.tags.iter().filter_map(|tag| tag_key(tag)).collect()
}

/// Sentinel's tags as they are compared: labels that people or programs set.
pub fn sentinel_tags(says: &SentinelSays) -> Names {
    says.labels.iter().filter(|label| !label.auto).filter_map(|label| tag_key(&label.name)).collect()
}

/// Defender's list with exactly the tags of `goal`, in its order and spelling, new ones at the end in Sentinel's.
pub fn tags_for_defender(goal: &Names, now: &DefenderSays, other: &SentinelSays) -> Vec<String> {
    let spelled = other.labels.iter().map(|label| label.name.as_str());
    listed(goal, now.tags.iter().map(String::as_str), spelled)
}

/// Sentinel's labels with exactly the tags of `goal`; automatic labels go back unchanged.
pub fn labels_for_sentinel(goal: &Names, now: &[Label], other: &DefenderSays) -> Vec<Label> {
    let (auto, user): (Vec<&Label>, Vec<&Label>) = now.iter().partition(|label| label.auto);
    let names = listed(goal, user.iter().map(|l| l.name.as_str()), other.tags.iter().map(String::as_str));
    auto.into_iter().cloned().chain(names.into_iter().map(|name| Label { name, auto: false })).collect()
}

/// `now` without what `goal` lacks (members that are no tags stay), then what is missing, as `spelled` writes it.
fn listed<'a>(
    goal: &Names,
    now: impl Iterator<Item = &'a str>,
    spelled: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let mut missing = goal.clone();
    let mut list: Vec<String> = Vec::new();
    for name in now {
        match tag_key(name) {
            Some(key) if !goal.contains(&key) => {}
            Some(key) => {
                missing.remove(&key);
                list.push(name.to_owned());
            }
            None => list.push(name.to_owned()),
        }
    }
    for name in spelled {
        if let Some(key) = tag_key(name)
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
pub fn new_twin(incident: &DefenderIncident) -> SentinelSays {
    let says = &incident.says;
    let status = status_to_sentinel(&says.status).unwrap_or(SentinelStatus::New);
    let closed = status == SentinelStatus::Closed;
    let verdict = verdict_to_sentinel(&(says.classification.clone(), says.determination.clone()))
        .unwrap_or((SentinelClassification::Undetermined, None));
    SentinelSays {
        title: title_to_sentinel(says.title.as_deref()).unwrap_or_else(|| title_of_nameless(&incident.id)),
        description: Some(description_to_sentinel(
            says.description.as_deref(),
            &incident.id,
            incident.web_url.as_deref(),
        )),
        severity: severity_to_sentinel(&says.severity).unwrap_or(SentinelSeverity::Medium),
        status,
        owner: owner_to_sentinel(says.owner.as_deref()),
        classification: closed.then(|| verdict.0.clone()),
        reason: if closed { verdict.1 } else { None },
        comment: if closed { plain_option(says.resolving_comment.as_deref()) } else { None },
        labels: labels_for_sentinel(&defender_tags(says), &[], says),
    }
}
