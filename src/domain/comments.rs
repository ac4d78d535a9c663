//! Comments, exactly once, both ways.
//!
//! Sentinel's comments have ids that the writer chooses, so ours are derived from what they copy, and a repeated PUT is
//! the same PUT. Defender's have none, cannot be changed, and posting twice makes two (`graph.md` §8.3): each of ours
//! ends in a short marker, the ledger says what was sent, and what got no answer is sent again only after two reads,
//! 30 s apart, that lack the marker. A comment that carries a marker is never taken for an analyst's, whoever brought
//! it to where it was found: Microsoft's own connector copies texts as they stand.
//!
//! Markers are `[ls:tttttttt/…]`: eight digits for the twin, then a letter and what it stands for.
//! `d` is a copy of a Defender comment, `n` a note of our own (the digest): found in Defender, both are somebody's copy
//! of what Defender has anyway. `s` is a post of a Sentinel comment: eight digits of the comment, two of the revision,
//! four of its text. With these a lost ledger is found again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime, UtcOffset};
use uuid::Uuid;

use crate::domain::model::LinkKey;
pub use crate::domain::model::{DefenderComment, SentinelComment};
use crate::domain::text::{
    clean, collapse, cut_to_units, escape_html, html_to_plain, html_units, markdown_to_plain, plain_to_html,
    units,
};

/// The namespace of comment ids and of everything that is hashed here.
const COMMENTS: Uuid = Uuid::from_u128(0x6c6f_636b_7374_6570_8c0d_636f_6d6d_656e);
/// The longest comment that Sentinel takes, in UTF-16 code units (`sentinel.md` §8).
pub const SENTINEL_LIMIT: usize = 30_000;
/// As many comments in Sentinel are left before analysts, playbooks and the alert digest run into its hundredth.
pub const MOST_IN_SENTINEL: usize = 85;
/// The most writes in one plan; the others follow at once.
pub const MOST_WRITES: usize = 25;
/// How far two reads must be apart to prove together that a post did not land.
pub const LOOK_AGAIN: Duration = Duration::seconds(30);

/// The most that one character takes in HTML, and the most by which a cut between words may miss.
const LONGEST_REFERENCE: usize = 6;
/// A longer author is cut.
const LONGEST_AUTHOR: usize = 120;
/// A longer comment is cut when it is carried over to the incident that its own was merged into. As HTML it may take
/// six times as much.
const LONGEST_CARRIED: usize = 4_500;
/// A longer reason for parking is cut.
const LONGEST_REASON: usize = 120;
/// Texts by which comments of other synchronisers are known, wherever they stand, in lower case.
const OTHERS: &[&str] = &["mirrored from cortex xsoar", "mirrored from demisto", "mirrored from xsoar"];
/// Texts by which they are known where they begin a comment. An analyst may well write about these systems.
const OTHERS_BEGIN: &[&str] = &[
    "[servicenow",
    "(servicenow",
    "servicenow:",
    "servicenow work note",
    "[snow]",
    "[jira",
    "[thehive",
    "[ibm soar",
    "[splunk soar",
];

/// What comments of a route do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommentPolicy {
    /// Carry Defender's to Sentinel.
    pub to_sentinel: bool,
    /// Carry Sentinel's to Defender.
    pub to_defender: bool,
    /// Post a notice in Defender when a comment in Sentinel was edited.
    pub edits: bool,
    /// For how long after an incident was closed the sweep still looks for edits.
    pub edits_after_close: Duration,
    /// Texts by which comments of other synchronisers are known, without regard to case.
    pub ignore: Vec<String>,
    /// The longest comment to post in Defender, in UTF-16 code units.
    pub defender_limit: usize,
    /// Equal texts on both sides are one comment: something else copies them too.
    pub pair_equal: bool,
    /// Leave comments younger than this to whatever else copies them.
    pub older_than: Option<Duration>,
}

impl Default for CommentPolicy {
    fn default() -> Self {
        Self {
            to_sentinel: true,
            to_defender: true,
            edits: true,
            edits_after_close: Duration::days(7),
            ignore: Vec::new(),
            defender_limit: 30_000,
            pair_equal: false,
            older_than: None,
        }
    }
}

/// The comments of both sides as read.
#[derive(Clone, Copy, Debug)]
pub struct CommentsSeen<'a> {
    /// Which link.
    pub link: &'a LinkKey,
    /// The name of Sentinel's incident.
    pub twin: &'a str,
    /// Defender's comments: all of them, in its order.
    pub defender: &'a [DefenderComment],
    /// Sentinel's comments, all of them, in any order; `None` when they were not listed in this run.
    pub sentinel: Option<&'a [SentinelComment]>,
    /// `commentsCount` of Sentinel's incident.
    pub sentinel_count: Option<u32>,
    /// The time of the reads.
    pub now: OffsetDateTime,
    /// The two incidents have not agreed on anything yet, so equal comments are one.
    pub first_meeting: bool,
}

/// A comment to PUT in Sentinel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentinelPut {
    /// Its id.
    pub id: String,
    /// HTML.
    pub message: String,
    /// The etag of the comment that it replaces, when that was listed.
    pub etag: Option<String>,
    /// Why, for the journal.
    pub reason: &'static str,
    /// Which comment, for the journal; not its text.
    pub source: String,
}

/// A comment to post in Defender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefenderPost {
    /// What it can be found by, as it stands in the text.
    pub marker: String,
    /// Plain text.
    pub text: String,
    /// Why, for the journal.
    pub reason: &'static str,
    /// Which comment, for the journal; not its text.
    pub source: String,
}

/// What to do about comments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommentPlan {
    /// In this order. Stop at the first that fails: a later comment must not come before it.
    pub puts: Vec<SentinelPut>,
    /// In this order. Stop at the first that fails, and call [`Ledger::refused_post`] for those not tried.
    pub posts: Vec<DefenderPost>,
    /// To be stored before anything is written, and whenever it differs from the one that was planned with.
    pub ledger: Ledger,
    /// When to look at this link again, if nothing else calls for it.
    pub look_again: Option<OffsetDateTime>,
    /// What was left out, cut, folded or paired, for the journal; no texts.
    pub notes: Vec<String>,
    /// Nothing was decided: list Sentinel's comments and plan again.
    pub list_sentinel: bool,
}

/// What is remembered of comments between two runs: hashes, no texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// When this ledger began (Unix milliseconds): what is older may be known to one that was lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    began: Option<i64>,
    /// How many comments Sentinel had when they were last listed, and ours since.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u32>,
    /// The count that a list fell short of and that was looked for once more.
    #[serde(skip_serializing_if = "Option::is_none")]
    chased: Option<u32>,
    /// Ids in Sentinel that landed.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    landed: BTreeSet<String>,
    /// Defender's comments that need no copy, or whose copy by somebody else was found.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    settled: BTreeSet<String>,
    /// Sentinel's comments that were dealt with.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    told: BTreeMap<String, Told>,
    /// Posts, by marker, that are not known to have landed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    posts: BTreeMap<String, Post>,
    /// Writes to Sentinel that it refuses for good, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parked: BTreeMap<String, String>,
    /// The digest of those beyond the reserve.
    #[serde(skip_serializing_if = "Option::is_none")]
    rolling: Option<Rolling>,
    /// Sentinel's comments are to be listed from this time on (Unix milliseconds): something there waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits: Option<i64>,
}

/// A Sentinel comment that was dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    /// The hash of its plain text.
    #[serde(rename = "t")]
    text: String,
    /// How many edits were told.
    #[serde(rename = "r", default, skip_serializing_if = "is_zero")]
    revision: u8,
    /// When it was last modified (Unix milliseconds): an older text is a read that lags.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    modified: Option<i64>,
    /// An equal comment in Defender stands for it.
    #[serde(rename = "p", default, skip_serializing_if = "is_false")]
    paired: bool,
}

/// A post that is not known to have landed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Post {
    /// It may have landed. Times in Unix milliseconds.
    Sent {
        at: i64,
        /// The first read that lacked it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        missed: Option<i64>,
    },
    /// It certainly did not.
    Unsent,
    /// Defender refuses it for good.
    Parked(String),
}

/// The digest comment for what goes beyond the reserve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Rolling {
    id: String,
    /// Hashes of its text as it landed, as planned, and as refused for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    landed: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    planned: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    /// The Defender comments in it.
    #[serde(default)]
    folded: BTreeSet<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &u8) -> bool {
    *value == 0
}

impl Ledger {
    /// A PUT was answered.
    pub fn landed_put(&mut self, id: &str) {
        let id = short(&id.to_lowercase());
        let new = match &mut self.rolling {
            Some(rolling) if rolling.id == id => {
                let first = rolling.landed.is_none();
                rolling.landed = rolling.planned.take().or(rolling.landed.take());
                first
            }
            _ => self.landed.insert(id.clone()),
        };
        self.parked.remove(&id);
        if new {
            // Counted here, so that our own write does not look like somebody's comment.
            self.count = self.count.map(|count| count.saturating_add(1));
        }
    }

    /// A post was answered, or its marker was seen.
    pub fn landed_post(&mut self, marker: &str) {
        self.posts.remove(marker);
    }

    /// A post certainly did not land, or was not tried: as if it had never been sent.
    pub fn refused_post(&mut self, marker: &str) {
        if let Some(post) = self.posts.get_mut(marker) {
            *post = Post::Unsent;
        }
    }

    /// Sentinel refuses this PUT for good: it is not tried again until its text changes.
    pub fn parked_put(&mut self, id: &str, reason: &str) {
        let id = short(&id.to_lowercase());
        if let Some(rolling) = self.rolling.as_mut().filter(|rolling| rolling.id == id) {
            rolling.refused = rolling.planned.take();
        }
        self.parked.insert(id, cut_to_units(reason, LONGEST_REASON).to_owned());
    }

    /// Defender refuses this post for good: it is not tried again until its text changes.
    pub fn parked_post(&mut self, marker: &str, reason: &str) {
        self.posts.insert(marker.to_owned(), Post::Parked(cut_to_units(reason, LONGEST_REASON).to_owned()));
    }

    /// Why comments are parked, to be shown.
    pub fn parked(&self) -> impl Iterator<Item = &str> {
        let posts = self.posts.values().filter_map(|post| match post {
            Post::Parked(reason) => Some(reason.as_str()),
            Post::Sent { .. } | Post::Unsent => None,
        });
        self.parked.values().map(String::as_str).chain(posts)
    }

    /// Whether anything is left to do that no change will call for: a post without an answer, or a comment that waits.
    pub fn is_open(&self) -> bool {
        self.waits.is_some() || self.posts.values().any(|post| !matches!(post, Post::Parked(_)))
    }

    /// Sentinel's comments are to be listed when they are next of use, even if their number is the same by then.
    pub fn list_anew(&mut self) {
        self.count = None;
    }

    /// Whether comments of Sentinel were dealt with: an edit of one would be news.
    pub fn has_told(&self) -> bool {
        !self.told.is_empty()
    }

    fn waits_until(&mut self, at: OffsetDateTime) {
        let at = millis(at);
        self.waits = Some(self.waits.map_or(at, |waits| waits.min(at)));
    }
}

/// Whether Sentinel's comments show one that is not known, or whose text is another than the one that was dealt with. A
/// cheap look before a link is read on both sides; what comes of it is for [`plan`] to say.
pub fn shows_news(ledger: &Ledger, listed: &[SentinelComment]) -> bool {
    listed.iter().any(|comment| {
        let key = short(&comment.name.to_lowercase());
        let text = plain(&comment.message);
        if carries_marker(&comment.message) || ledger.landed.contains(&key) || ledger.settled.contains(&key) {
            return false;
        }
        ledger.told.get(&key).map_or(!collapse(&text).is_empty(), |told| {
            let lags =
                comment.modified.map(millis).zip(told.modified).is_some_and(|(now, known)| now < known);
            told.text != short(&collapse(&text)) && !lags
        })
    })
}

/// Whether a text carries a marker of any Lockstep: then it is no analyst's comment.
pub fn carries_marker(text: &str) -> bool {
    !markers(text).is_empty()
}

/// The marker for a note of our own in Sentinel, as plain text: with it the note is never carried anywhere.
pub fn note_marker(twin: &str, what: &str) -> String {
    format!("[ls:{}/n{}]", of_twin(twin), short(what))
}

/// The comments of people on both sides of one link, oldest first, each as HTML that says who wrote it, where and when.
/// What carries a marker is a copy of one of the others.
pub fn analysts(defender: &[DefenderComment], sentinel: &[SentinelComment]) -> Vec<String> {
    let mut said: Vec<(Option<OffsetDateTime>, String)> = Vec::new();
    let mut say = |author: Option<&str>, side: &str, at: Option<OffsetDateTime>, text: &str| {
        let text = plain(text);
        if !text.trim().is_empty() && !carries_marker(&text) {
            let (body, whole) = match cut_to_units(&text, LONGEST_CARRIED) {
                cut if cut.len() < text.len() => {
                    (cut, "<p><i>Cut: the whole is where it was written.</i></p>")
                }
                all => (all, ""),
            };
            let author = escape_html(&shown_author(author));
            let at_text = at.map(|at| format!(", {}", shown_time(at))).unwrap_or_default();
            let html =
                format!("<p><b>{author}</b> in {side}{at_text}</p><p>{}</p>{whole}", plain_to_html(body));
            said.push((at, html));
        }
    };
    for comment in defender {
        say(comment.author.as_deref(), "Defender", comment.at, &comment.text);
    }
    for comment in sentinel {
        say(comment.author.as_deref(), "Sentinel", comment.created, &comment.message);
    }
    said.sort_by_key(|(at, _)| *at);
    said.into_iter().map(|(_, html)| html).collect()
}

/// Decides what to write, oldest first on each side. Pure: the same input gives the same plan, and a plan that was
/// carried out leaves nothing to plan.
pub fn plan(seen: &CommentsSeen<'_>, ledger: &Ledger, policy: &CommentPolicy) -> CommentPlan {
    let mut work = Work::new(seen, ledger, policy);
    work.resolve_posts();
    if seen.sentinel.is_none() && work.needs_list() {
        return CommentPlan {
            puts: Vec::new(),
            posts: Vec::new(),
            ledger: ledger.clone(),
            look_again: None,
            notes: Vec::new(),
            list_sentinel: true,
        };
    }
    work.note_list();
    if policy.pair_equal || seen.first_meeting {
        work.pair();
    }
    if policy.to_sentinel {
        work.carry_to_sentinel();
        work.roll();
    }
    if policy.to_defender {
        work.carry_to_defender();
    }
    work.finish()
}

/// A marker as found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Marker {
    twin: String,
    kind: char,
    rest: String,
}

fn markers(text: &str) -> Vec<Marker> {
    let mut found = Vec::new();
    let lower = text.to_ascii_lowercase();
    for (at, start) in lower.match_indices("[ls:") {
        let inner = &lower[at + start.len()..];
        let Some((twin, what)) = inner.split_once(']').and_then(|(inner, _)| inner.split_once('/')) else {
            continue;
        };
        let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let Some(kind) = what.chars().next().filter(char::is_ascii_lowercase) else { continue };
        if twin.len() == 8 && hex(twin) && (9..=21).contains(&what.len()) && hex(&what[1..]) {
            found.push(Marker { twin: twin.to_owned(), kind, rest: what[1..].to_owned() });
        }
    }
    found
}

/// Ten hexadecimal digits.
fn short(text: &str) -> String {
    let mut digits = Uuid::new_v5(&COMMENTS, text.as_bytes()).simple().to_string();
    digits.truncate(10);
    digits
}

fn of_twin(twin: &str) -> String {
    let mut digits = short(&format!("twin\n{}", twin.to_lowercase()));
    digits.truncate(8);
    digits
}

fn millis(at: OffsetDateTime) -> i64 {
    // 64 bits of milliseconds reach further than the calendar of `time`.
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// What a text says, whatever it is dressed in.
fn plain(text: &str) -> String {
    markdown_to_plain(&html_to_plain(text))
}

fn shown_author(author: Option<&str>) -> String {
    let author = collapse(&clean(author.unwrap_or_default()));
    if author.is_empty() { "somebody".to_owned() } else { cut_to_units(&author, LONGEST_AUTHOR).to_owned() }
}

fn shown_time(at: OffsetDateTime) -> String {
    let at = at.to_offset(UtcOffset::UTC);
    let (year, month, day) = at.to_calendar_date();
    format!("{year:04}-{:02}-{day:02} {:02}:{:02} UTC", u8::from(month), at.hour(), at.minute())
}

/// `Ann, 2026-11-25 10:00 UTC`.
fn shown_source(author: Option<&str>, at: Option<OffsetDateTime>) -> String {
    let author = shown_author(author);
    at.map_or_else(|| author.clone(), |at| format!("{author}, {}", shown_time(at)))
}

/// Cuts clean text into pieces that each take at most `room` units as HTML, between words where that costs little.
fn split_for_html(text: &str, room: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut from, mut used, mut space) = (0, 0, None);
    for (at, c) in text.char_indices() {
        let cost = html_units(c);
        if used + cost > room && at > from {
            let end = match space {
                Some(space) if space > from && (at - space) * 4 < at - from => space,
                _ => at,
            };
            pieces.push(&text[from..end]);
            used = text[end..at].chars().map(html_units).sum();
            from = end;
            space = None;
        }
        used += cost;
        if c.is_whitespace() {
            space = Some(at + c.len_utf8());
        }
    }
    pieces.push(&text[from..]);
    pieces
}

/// A Defender comment that is a candidate for Sentinel.
struct Source<'a> {
    comment: &'a DefenderComment,
    /// UUIDv5 of author, instant, text and ordinal among equals.
    key: Uuid,
    /// Its short form, in the ledger.
    short: String,
    /// Its time, or that of the one before it.
    order: Option<OffsetDateTime>,
    /// It carries a marker of another link's post: Sentinel's comment elsewhere.
    foreign: bool,
}

/// What there is to post about a Sentinel comment.
struct Candidate<'a> {
    comment: &'a SentinelComment,
    key: String,
    plain: String,
    text: String,
    revision: u8,
    at: Option<OffsetDateTime>,
    /// A post that must be cleared up first.
    waiting: Option<OffsetDateTime>,
    /// The ledger knows of no post of it.
    new: bool,
}

struct Work<'a> {
    seen: &'a CommentsSeen<'a>,
    policy: &'a CommentPolicy,
    /// The ledger was empty: it may be lost.
    fresh: bool,
    /// When the ledger began. A comment as old as that may have been posted by a run whose ledger is lost, and a lagging
    /// read of Defender may lack the post: it is looked for twice.
    began: i64,
    /// The first eight digits of our markers.
    mine: String,
    /// Defender's comments that may go to Sentinel, oldest first.
    sources: Vec<Source<'a>>,
    /// Markers of this link's posts in Defender: comment, then revision and text.
    posted: HashMap<String, Vec<(u8, String)>>,
    posted_markers: HashSet<String>,
    /// Sentinel's comments, oldest first.
    sentinel: Vec<&'a SentinelComment>,
    ledger: Ledger,
    puts: Vec<SentinelPut>,
    posts: Vec<DefenderPost>,
    look_again: Option<OffsetDateTime>,
    notes: Vec<String>,
}

impl<'a> Work<'a> {
    fn new(seen: &'a CommentsSeen<'a>, ledger: &Ledger, policy: &'a CommentPolicy) -> Self {
        let mut ledger = ledger.clone();
        let fresh = ledger.began.is_none();
        let began = *ledger.began.get_or_insert(millis(seen.now));
        let mut work = Work {
            seen,
            policy,
            fresh,
            began,
            mine: of_twin(seen.twin),
            sources: Vec::new(),
            posted: HashMap::new(),
            posted_markers: HashSet::new(),
            sentinel: seen.sentinel.unwrap_or_default().iter().collect(),
            ledger,
            puts: Vec::new(),
            posts: Vec::new(),
            look_again: None,
            notes: Vec::new(),
        };
        work.read_defender();
        work.sentinel.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        work
    }

    /// Sorts Defender's comments into ours and those that may go to Sentinel.
    fn read_defender(&mut self) {
        let mut equals: HashMap<(&str, Option<i64>, &str), u32> = HashMap::new();
        let mut order = None;
        for comment in self.seen.defender {
            // Whole seconds: the same comment may come with more or fewer digits from another endpoint.
            let second = comment.at.map(OffsetDateTime::unix_timestamp);
            let author = comment.author.as_deref().unwrap_or_default();
            let ordinal = equals.entry((author, second, &comment.text)).or_default();
            let text = Uuid::new_v5(&COMMENTS, comment.text.as_bytes());
            let key = Uuid::new_v5(&COMMENTS, format!("{author}\n{second:?}\n{text}\n{ordinal}").as_bytes());
            *ordinal += 1;
            order = comment.at.or(order);
            let markers = markers(&comment.text);
            for marker in markers.iter().filter(|marker| marker.twin == self.mine && marker.kind == 's') {
                self.posted_markers.insert(format!("[ls:{}/s{}]", marker.twin, marker.rest));
                if let (Some(of), Some(revision), Some(text)) =
                    (marker.rest.get(..8), marker.rest.get(8..10), marker.rest.get(10..14))
                {
                    let revision = u8::from_str_radix(revision, 16).unwrap_or(u8::MAX);
                    self.posted.entry(of.to_owned()).or_default().push((revision, text.to_owned()));
                }
            }
            // Copies of Defender's own comments that something brought back are nobody's.
            let short = short(&key.to_string());
            if markers.iter().any(|marker| marker.twin == self.mine || marker.kind != 's') {
                self.quotes_marker(&comment.text, short, comment.author.as_deref(), comment.at);
                continue;
            }
            self.sources.push(Source { comment, key, short, order, foreign: !markers.is_empty() });
        }
        self.sources.sort_by_key(|source| source.order);
    }

    /// A marker that does not end the text was quoted by somebody: that comment is left out all the same, because no
    /// rule could tell it from a copy that something cut or added to, but it is said once.
    fn quotes_marker(&mut self, text: &str, key: String, author: Option<&str>, at: Option<OffsetDateTime>) {
        if !plain(text).trim_end().ends_with(']') && self.ledger.settled.insert(key) {
            let named = shown_source(author, at);
            self.notes.push(format!("a comment by {named} is left out: it quotes a marker of ours"));
        }
    }

    fn look_again(&mut self, at: OffsetDateTime) {
        self.look_again = Some(self.look_again.map_or(at, |again| again.min(at)));
    }

    fn at(&self, millis: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).unwrap_or(self.seen.now)
    }

    /// Settles the posts whose marker shows, and notes the first read that lacks one.
    fn resolve_posts(&mut self) {
        let posted = &self.posted_markers;
        let before = self.ledger.posts.len();
        self.ledger.posts.retain(|marker, _| !posted.contains(marker));
        let now = millis(self.seen.now);
        if self.ledger.posts.len() < before && self.ledger.waits.is_some() {
            // What waited behind a post that now shows need not wait longer.
            self.ledger.waits = Some(now);
        }
        for post in self.ledger.posts.values_mut() {
            if let Post::Sent { missed: missed @ None, .. } = post {
                *missed = Some(now);
            }
        }
        let waiting: Vec<_> = self.ledger.posts.values().filter_map(|post| self.waiting(post)).collect();
        for at in waiting {
            self.look_again(at);
        }
    }

    /// Until when a post may still turn out to have landed.
    fn waiting(&self, post: &Post) -> Option<OffsetDateTime> {
        let Post::Sent { at, missed } = post else { return None };
        let until = self.at(missed.unwrap_or(*at)) + LOOK_AGAIN;
        (self.seen.now < until).then_some(until)
    }

    /// Whether nothing can be decided without Sentinel's comments.
    fn needs_list(&self) -> bool {
        let empty = self.seen.sentinel_count == Some(0);
        let pairing = self.policy.pair_equal || self.seen.first_meeting;
        if empty && self.ledger.posts.is_empty() {
            // Nothing there: the ledger is as good as the list.
            return false;
        }
        if self.fresh {
            return true;
        }
        if self.policy.to_sentinel && pairing && self.sources.iter().any(|source| !self.dealt_with(source)) {
            return true;
        }
        let moved = self.seen.sentinel_count.is_some() && self.seen.sentinel_count != self.ledger.count;
        let waits = self.ledger.waits.is_some_and(|at| at <= millis(self.seen.now));
        let resend = self.ledger.posts.values().any(|post| match post {
            Post::Sent { .. } => self.waiting(post).is_none(),
            Post::Unsent => true,
            Post::Parked(_) => false,
        });
        (self.policy.to_defender && (moved || waits || resend)) || (pairing && moved)
    }

    /// Learns from Sentinel's list, if there is one, what of ours is there.
    fn note_list(&mut self) {
        let seen = self.seen;
        let Some(list) = seen.sentinel else {
            if self.ledger.count.is_none() || seen.sentinel_count == Some(0) {
                self.ledger.count = seen.sentinel_count;
            }
            if self.ledger.count == seen.sentinel_count {
                self.ledger.chased = None;
            }
            // Not listed yet: what waits there is still to be come back to.
            if let Some(waits) = self.ledger.waits.filter(|_| self.policy.to_defender) {
                self.look_again(self.at(waits).max(seen.now));
            }
            return;
        };
        self.ledger.waits = None;
        let length = u32::try_from(list.len()).unwrap_or(u32::MAX);
        self.ledger.count = Some(length);
        // The incident already counts a comment that the list lacks: a replica that lags. Once more, not for ever.
        match seen.sentinel_count.filter(|count| *count > length) {
            Some(count) if self.ledger.chased != Some(count) => {
                self.ledger.chased = Some(count);
                self.ledger.waits_until(seen.now + LOOK_AGAIN);
                self.look_again(seen.now + LOOK_AGAIN);
            }
            Some(_) => {}
            None => self.ledger.chased = None,
        }
        let names: HashSet<String> = list.iter().map(|comment| short(&comment.name.to_lowercase())).collect();
        for source in &self.sources {
            for part in 0..self.parts(source) {
                let id = short(&self.id_of(source, part));
                if names.contains(&id) {
                    self.ledger.landed.insert(id);
                }
            }
        }
        // A copy whose source this read of Defender lacks: it landed all the same, and is counted above.
        for comment in list {
            let id = short(&comment.name.to_lowercase());
            let copy = |marker: &Marker| marker.twin == self.mine && marker.kind == 'd' && marker.rest == id;
            if markers(&comment.message).iter().any(copy) {
                self.ledger.landed.insert(id);
            }
        }
        let rolling = short(&self.rolling_id());
        if names.contains(&rolling) && self.ledger.rolling.is_none() {
            self.ledger.rolling = Some(Rolling { id: rolling, ..Rolling::default() });
        }
    }

    fn id(&self, what: &str) -> String {
        Uuid::new_v5(&COMMENTS, format!("{}\n{what}", self.seen.twin.to_lowercase()).as_bytes()).to_string()
    }

    fn id_of(&self, source: &Source<'_>, part: usize) -> String {
        match part {
            0 => self.id(&source.key.to_string()),
            _ => self.id(&format!("{}\n{part}", source.key)),
        }
    }

    fn rolling_id(&self) -> String {
        self.id("rolling")
    }

    fn pieces<'t>(&self, source: &Source<'_>, text: &'t str) -> Vec<&'t str> {
        let frame = units(&self.frame(source, "", Some((99, 99)), 0));
        split_for_html(text, SENTINEL_LIMIT - frame - LONGEST_REFERENCE)
    }

    fn parts(&self, source: &Source<'_>) -> usize {
        // No character takes more than six units (`&quot;`); most comments are far shorter than that.
        if source.comment.text.len() < 4_000 {
            return 1;
        }
        self.pieces(source, clean(&source.comment.text).trim()).len()
    }

    fn frame(&self, source: &Source<'_>, text: &str, part: Option<(usize, usize)>, number: usize) -> String {
        let DefenderComment { author, at, .. } = source.comment;
        let author = escape_html(&shown_author(author.as_deref()));
        let time = at.map(|at| format!(", {}", shown_time(at))).unwrap_or_default();
        let part = part.map(|(part, of)| format!(" (part {part} of {of})")).unwrap_or_default();
        let marker = format!("[ls:{}/d{}]", self.mine, short(&self.id_of(source, number)));
        format!(
            "<p><b>{author}</b> in Defender{time}{part}</p><p>{}</p><p><i>{marker}</i></p>",
            plain_to_html(text)
        )
    }

    /// The comments that Sentinel is to have for one of Defender's, with their ids.
    fn render(&self, source: &Source<'_>) -> Vec<(String, String)> {
        let text = clean(&source.comment.text);
        let pieces = self.pieces(source, text.trim());
        let of = pieces.len();
        let part = |number| (of > 1).then_some((number + 1, of));
        pieces
            .iter()
            .enumerate()
            .map(|(number, piece)| {
                (self.id_of(source, number), self.frame(source, piece, part(number), number))
            })
            .collect()
    }

    fn on_its_own(&self, source: &Source<'_>) -> bool {
        (0..self.parts(source)).any(|part| {
            let id = short(&self.id_of(source, part));
            self.ledger.landed.contains(&id) || self.ledger.parked.contains_key(&id)
        })
    }

    fn folded(&self, source: &Source<'_>) -> bool {
        self.ledger.rolling.as_ref().is_some_and(|rolling| rolling.folded.contains(&source.short))
    }

    fn dealt_with(&self, source: &Source<'_>) -> bool {
        self.ledger.settled.contains(&source.short) || self.on_its_own(source) || self.folded(source)
    }

    fn ignored(&self, plain: &str) -> bool {
        let lower = plain.to_lowercase();
        let start = lower.trim_start();
        OTHERS.iter().any(|text| lower.contains(text))
            || OTHERS_BEGIN.iter().any(|text| start.starts_with(text))
            || self
                .policy
                .ignore
                .iter()
                .any(|text| !text.trim().is_empty() && lower.contains(&text.to_lowercase()))
    }

    /// Whether a Sentinel comment is one that we wrote for this link.
    fn ours(&self, comment: &SentinelComment, derived: &HashSet<String>) -> bool {
        let id = short(&comment.name.to_lowercase());
        derived.contains(&id)
            || self.ledger.landed.contains(&id)
            || markers(&comment.message).iter().any(|marker| marker.twin == self.mine)
    }

    fn derived(&self) -> HashSet<String> {
        let mut derived = HashSet::from([short(&self.rolling_id())]);
        for source in &self.sources {
            derived.extend((0..self.parts(source)).map(|part| short(&self.id_of(source, part))));
        }
        derived
    }

    fn posted_before(&self, key: &str) -> &[(u8, String)] {
        key.get(..8).and_then(|of| self.posted.get(of)).map(Vec::as_slice).unwrap_or_default()
    }

    /// Pairs comments that say the same on both sides, each once. Those that were carried by nobody go first; where
    /// something else copies comments too, its copy of what we carried is paired as well, or it would be carried back.
    fn pair(&mut self) {
        let derived = self.derived();
        let mut there: HashMap<String, Vec<(bool, &SentinelComment)>> = HashMap::new();
        for comment in self.sentinel.iter().rev() {
            let key = short(&comment.name.to_lowercase());
            let told = self.ledger.told.get(&key);
            if self.ours(comment, &derived) || told.is_some_and(|told| told.paired) {
                continue;
            }
            let open = told.is_some_and(|told| {
                self.ledger.posts.contains_key(&self.post_marker(&key, told.revision, &told.text))
            });
            let carried = told.is_some() && !open || !self.posted_before(&key).is_empty();
            let text = collapse(&plain(&comment.message));
            if !text.is_empty() {
                there.entry(text).or_default().push((carried, comment));
            }
        }
        if there.is_empty() {
            return;
        }
        let mut pairs = 0;
        let rounds: &[(bool, bool)] = if self.policy.pair_equal {
            &[(false, false), (false, true), (true, false)]
        } else {
            &[(false, false)]
        };
        for (source_carried, comment_carried) in rounds.iter().copied() {
            for at in 0..self.sources.len() {
                let source = &self.sources[at];
                let carried = self.on_its_own(source) || self.folded(source);
                if self.ledger.settled.contains(&source.short) || carried != source_carried {
                    continue;
                }
                let Some(found) = there.get_mut(&collapse(&plain(&source.comment.text))) else { continue };
                // The oldest are at the end.
                let Some(index) = found.iter().rposition(|(carried, _)| *carried == comment_carried) else {
                    continue;
                };
                let (_, comment) = found.remove(index);
                pairs += 1;
                let short_source = source.short.clone();
                self.ledger.settled.insert(short_source);
                let key = short(&comment.name.to_lowercase());
                let text = short(&collapse(&plain(&comment.message)));
                let modified = comment.modified.map(millis);
                let told = Told { text, revision: 0, modified, paired: true };
                let told = self.ledger.told.entry(key.clone()).or_insert(told);
                told.paired = true;
                // Whatever became of a post of ours, it is not repeated: the comment is there.
                let (revision, text) = (told.revision, told.text.clone());
                let marker = self.post_marker(&key, revision, &text);
                self.ledger.posts.remove(&marker);
            }
        }
        if pairs > 0 {
            self.notes.push(format!("{pairs} comments are on both sides already"));
        }
    }

    fn too_young(&self, at: Option<OffsetDateTime>) -> Option<OffsetDateTime> {
        let old_enough = at? + self.policy.older_than?;
        (self.seen.now < old_enough).then_some(old_enough)
    }

    /// How many comments Sentinel has, as far as anyone has said.
    fn in_sentinel(&self) -> usize {
        let count = self.seen.sentinel_count.max(self.ledger.count).unwrap_or_default() as usize;
        let ours = self.ledger.landed.len() + usize::from(self.ledger.rolling.is_some());
        count.max(self.sentinel.len()).max(ours)
    }

    fn carry_to_sentinel(&mut self) {
        let base = self.in_sentinel();
        let mut folded = 0;
        for at in 0..self.sources.len() {
            let source = &self.sources[at];
            if self.ledger.settled.contains(&source.short) || self.folded(source) {
                continue;
            }
            let parts = self.parts(source);
            let missing: Vec<usize> = (0..parts)
                .filter(|part| {
                    let id = short(&self.id_of(source, *part));
                    !self.ledger.landed.contains(&id) && !self.ledger.parked.contains_key(&id)
                })
                .collect();
            if missing.is_empty() {
                continue;
            }
            let named = shown_source(source.comment.author.as_deref(), source.comment.at);
            let text = plain(&source.comment.text);
            let skip = if collapse(&clean(&source.comment.text)).is_empty() {
                Some("empty")
            } else if self.ignored(&text) {
                Some("another synchroniser's")
            } else {
                None
            };
            let short_source = source.short.clone();
            if let Some(why) = skip {
                self.notes.push(format!("a comment by {named} in Defender is left out: {why}"));
                self.ledger.settled.insert(short_source);
                continue;
            }
            if let Some(old_enough) = self.too_young(source.comment.at) {
                self.look_again(old_enough);
                break;
            }
            let rolling = self.ledger.rolling.is_some();
            let begun = missing.len() < parts;
            let after = base + self.puts.len() + missing.len() + 1;
            if !begun && (rolling || after > MOST_IN_SENTINEL) {
                let id = short(&self.rolling_id());
                let rolling = self.ledger.rolling.get_or_insert_with(|| Rolling { id, ..Rolling::default() });
                rolling.folded.insert(short_source);
                folded += 1;
                continue;
            }
            if self.puts.len() >= MOST_WRITES {
                self.look_again(self.seen.now);
                break;
            }
            let reason = if source.foreign {
                "a comment of another workspace"
            } else {
                "a comment was written in Defender"
            };
            let rendered = self.render(source);
            if rendered.len() > 1 && !begun {
                self.notes
                    .push(format!("a comment by {named} in Defender is cut into {} parts", rendered.len()));
            }
            for part in missing {
                if self.puts.len() >= MOST_WRITES {
                    self.look_again(self.seen.now);
                    break;
                }
                let Some((id, message)) = rendered.get(part).cloned() else { continue };
                self.puts.push(SentinelPut { id, message, etag: None, reason, source: named.clone() });
            }
        }
        if folded > 0 {
            self.notes
                .push(format!("{folded} comments in Defender go into the digest: Sentinel takes a hundred"));
        }
    }

    /// Renders the digest again, and plans to write it if it says something new.
    fn roll(&mut self) {
        let Some(mut rolling) = self.ledger.rolling.clone() else { return };
        let known: HashSet<&str> = self.sources.iter().map(|source| source.short.as_str()).collect();
        if rolling.folded.iter().any(|short| !known.contains(short.as_str())) {
            // Defender never loses a comment, so this read lags; the digest would lose what it lacks.
            return;
        }
        let own: Vec<String> = self
            .sources
            .iter()
            .filter(|source| self.on_its_own(source))
            .map(|source| source.short.clone())
            .collect();
        for short in &own {
            rolling.folded.remove(short);
        }
        let folded: Vec<&Source<'_>> =
            self.sources.iter().filter(|source| rolling.folded.contains(&source.short)).collect();
        let (message, cut) = self.render_rolling(&folded);
        let hash = short(&message);
        let id = self.rolling_id();
        let listed = self.sentinel.iter().find(|comment| comment.name.eq_ignore_ascii_case(&id));
        let same = |comment: &&&SentinelComment| {
            collapse(&html_to_plain(&comment.message)) == collapse(&html_to_plain(&message))
        };
        if listed.as_ref().is_some_and(same) {
            rolling.landed = Some(hash.clone());
        }
        if rolling.landed.as_ref() != Some(&hash) && rolling.refused.as_ref() != Some(&hash) {
            if self.puts.len() >= MOST_WRITES {
                self.look_again(self.seen.now);
            } else {
                if cut > 0 {
                    self.notes
                        .push(format!("{cut} earlier comments are only in Defender: the digest is full"));
                }
                rolling.planned = Some(hash);
                self.puts.push(SentinelPut {
                    id,
                    message,
                    etag: listed.map(|comment| comment.etag.clone()),
                    reason: "Sentinel takes a hundred comments: the further ones go into one",
                    source: format!("{} comments in Defender", folded.len()),
                });
            }
        }
        self.ledger.rolling = Some(rolling);
    }

    /// The digest, and how many of the oldest did not fit.
    fn render_rolling(&self, folded: &[&Source<'_>]) -> (String, usize) {
        let marker = note_marker(self.seen.twin, "rolling");
        let earlier = |count: usize| match count {
            0 => String::new(),
            _ => format!(
                "<p>{count} earlier comments are only in Defender, incident {}.</p>",
                escape_html(&self.seen.link.incident_id)
            ),
        };
        let head = "<p><b>Further comments in Defender</b></p>";
        let tail = format!("<p><i>{marker}</i></p>");
        let mut room = SENTINEL_LIMIT - units(head) - units(&tail) - units(&earlier(usize::MAX));
        let mut entries = Vec::new();
        for source in folded.iter().rev() {
            let named = shown_source(source.comment.author.as_deref(), source.comment.at);
            let before = format!("<p><b>{}</b><br>", escape_html(&named));
            let text = clean(&source.comment.text);
            let whole = format!("{before}{}</p>", plain_to_html(text.trim()));
            let note = "<br>[cut: the whole comment is in Defender]</p>";
            let entry = if units(&whole) <= room {
                whole
            } else if entries.is_empty() {
                // One that alone is too long still shows its beginning.
                let piece = split_for_html(text.trim(), room - units(&before) - units(note))[0];
                format!("{before}{}{note}", plain_to_html(piece))
            } else {
                break;
            };
            room = room.saturating_sub(units(&entry));
            entries.push(entry);
        }
        let cut = folded.len() - entries.len();
        entries.reverse();
        (format!("{head}{}{}{tail}", earlier(cut), entries.concat()), cut)
    }

    fn post_marker(&self, key: &str, revision: u8, text: &str) -> String {
        let (of, text) = (key.get(..8).unwrap_or(key), text.get(..4).unwrap_or(text));
        format!("[ls:{}/s{of}{revision:02x}{text}]", self.mine)
    }

    /// What there is to post about one Sentinel comment, if anything; remembers what needs no post.
    fn candidate(&mut self, comment: &'a SentinelComment) -> Option<Candidate<'a>> {
        let key = short(&comment.name.to_lowercase());
        let plain = plain(&comment.message);
        let says = collapse(&plain);
        let text = short(&says);
        let modified = comment.modified.map(millis);
        let named = shown_source(comment.author.as_deref(), comment.created);
        let silent = |revision, paired| Told { text: text.clone(), revision, modified, paired };
        let told = self.ledger.told.get(&key).cloned();
        let paired = told.as_ref().is_some_and(|told| told.paired);
        let revision = told.as_ref().map_or(0, |told| told.revision);
        let news = told.as_ref().is_none_or(|told| told.text != text);
        if let Some(told) = &told
            && news
            && modified.zip(told.modified).is_some_and(|(now, known)| now < known)
        {
            // A read that lags. What was posted of the newer text still comes before what follows.
            let post = self.ledger.posts.get(&self.post_marker(&key, told.revision, &told.text))?;
            let waiting = match post {
                Post::Parked(_) => return None,
                Post::Sent { .. } | Post::Unsent => self.waiting(post).unwrap_or(self.seen.now + LOOK_AGAIN),
            };
            let at = if revision == 0 { comment.created } else { told.modified.map(|at| self.at(at)) };
            return Some(Candidate {
                comment,
                key,
                plain,
                text,
                revision,
                at,
                waiting: Some(waiting),
                new: false,
            });
        }
        let skip = if says.is_empty() {
            Some("empty")
        } else if self.ignored(&plain) {
            Some("another synchroniser's")
        } else {
            None
        };
        if let Some(why) = skip.filter(|_| news) {
            self.notes.push(format!("a comment by {named} in Sentinel is left out: {why}"));
            self.ledger.told.insert(key, silent(revision, paired));
            return None;
        }
        let marker = told.as_ref().map(|told| self.post_marker(&key, told.revision, &told.text));
        let open = marker.as_ref().and_then(|marker| self.ledger.posts.get(marker)).cloned();
        let new = open.is_none();
        let fresh = |revision, at, waiting| {
            Some(Candidate {
                comment,
                key: key.clone(),
                plain,
                text: text.clone(),
                revision,
                at,
                waiting,
                new,
            })
        };
        let posted = self.posted_before(&key);
        let (Some(told), Some(marker)) = (told, marker) else {
            let newest = posted.iter().map(|(revision, _)| *revision).max();
            let as_now =
                posted.iter().filter(|(_, of)| text.starts_with(of)).map(|(revision, _)| *revision).max();
            return match (as_now, newest) {
                // The ledger was lost, the marker was not.
                (Some(revision), _) => {
                    self.ledger.told.insert(key, silent(revision, false));
                    None
                }
                (None, Some(newest)) if self.policy.edits => {
                    fresh(newest.saturating_add(1), comment.modified.or(comment.created), None)
                }
                (None, Some(newest)) => {
                    self.ledger.told.insert(key, silent(newest, false));
                    None
                }
                (None, None) => fresh(0, comment.created, None),
            };
        };
        let at = if revision == 0 { comment.created } else { comment.modified.or(comment.created) };
        // Posts that this ledger does not know: of a run whose ledger was lost.
        let later =
            || posted.iter().filter(|(of, _)| *of > told.revision || open.is_some() && *of == told.revision);
        let already = later().filter(|(_, of)| text.starts_with(of)).map(|(of, _)| *of).max();
        if let Some(already) = already.filter(|_| news || open.is_some()) {
            self.ledger.posts.remove(&marker);
            self.ledger.told.insert(key, silent(already, paired));
            return None;
        }
        if let Some(waiting) = open.as_ref().and_then(|post| self.waiting(post)) {
            return fresh(told.revision, at, Some(waiting));
        }
        let newest = later().map(|(of, _)| *of).max();
        // What Defender says last is what the comment says: the open post was of a text that is no more.
        let last = posted.iter().max_by_key(|(of, _)| *of).filter(|(_, of)| text.starts_with(of));
        if let Some((last, _)) = last.filter(|_| news && open.is_some()) {
            let told = silent(*last, paired);
            self.ledger.posts.remove(&marker);
            self.ledger.told.insert(key, told);
            return None;
        }
        match (open, newest) {
            (Some(Post::Parked(_)), _) | (None, _) if !news => None,
            (Some(_), None) => fresh(told.revision, at, None),
            // It said something older there, so this is an edit of it.
            (Some(_), Some(_)) | (None, _) if self.policy.edits => {
                let revision = newest.unwrap_or(told.revision).saturating_add(1);
                fresh(revision, comment.modified.or(comment.created), None)
            }
            (_, newest) => {
                self.ledger.posts.remove(&marker);
                self.ledger.told.insert(key, silent(newest.unwrap_or(told.revision), paired));
                None
            }
        }
    }

    fn carry_to_defender(&mut self) {
        if self.seen.sentinel.is_none() {
            return;
        }
        let derived = self.derived();
        let mut candidates = Vec::new();
        let mut listed = HashSet::new();
        for comment in self.sentinel.clone() {
            let key = short(&comment.name.to_lowercase());
            listed.insert(key.get(..8).unwrap_or(&key).to_owned());
            if carries_marker(&comment.message) || self.ours(comment, &derived) {
                if !derived.contains(&key) {
                    self.quotes_marker(&comment.message, key, comment.author.as_deref(), comment.created);
                }
                continue;
            }
            candidates.extend(self.candidate(comment));
        }
        self.forget_deleted(&listed);
        candidates.sort_by_key(|candidate| candidate.at);
        let mut second_look = false;
        for candidate in candidates {
            let old = candidate.at.map_or(self.fresh, |at| millis(at) <= self.began);
            if candidate.new && old {
                self.look_twice(&candidate);
                second_look = true;
                continue;
            }
            if second_look {
                break;
            }
            if let Some(waiting) = candidate.waiting {
                // What comes later must not overtake it.
                self.ledger.waits_until(waiting);
                self.look_again(waiting);
                break;
            }
            if candidate.revision == 0
                && let Some(old_enough) = self.too_young(candidate.at)
            {
                self.ledger.waits_until(old_enough);
                self.look_again(old_enough);
                continue;
            }
            if self.puts.len() + self.posts.len() >= MOST_WRITES {
                self.ledger.waits_until(self.seen.now);
                self.look_again(self.seen.now);
                break;
            }
            self.post(candidate);
        }
    }

    /// A post that did not land and whose comment was deleted meanwhile has nothing left to say.
    fn forget_deleted(&mut self, listed: &HashSet<String>) {
        let open: Vec<(String, Post)> =
            self.ledger.posts.iter().map(|(of, post)| (of.clone(), post.clone())).collect();
        for (marker, post) in open {
            let of = markers(&marker).first().and_then(|marker| marker.rest.get(..8).map(str::to_owned));
            let Some(of) = of.filter(|of| !listed.contains(of)) else { continue };
            if self.waiting(&post).is_none() {
                self.ledger.posts.remove(&marker);
                // If the list only lagged, what was not posted is news when the comment shows again: a new comment, or
                // an edit of what was posted before.
                self.ledger.told.retain(|key, told| {
                    let this = key.starts_with(&of);
                    if this && told.revision > 0 {
                        *told = Told { text: String::new(), revision: told.revision - 1, ..told.clone() };
                    }
                    !this || told.text.is_empty()
                });
            }
        }
    }

    /// As if sent now and missed by a first read.
    fn look_twice(&mut self, candidate: &Candidate<'_>) {
        let Candidate { comment, key, text, revision, .. } = candidate;
        let now = millis(self.seen.now);
        let marker = self.post_marker(key, *revision, text);
        self.ledger.posts.insert(marker, Post::Sent { at: now, missed: Some(now) });
        let told = Told {
            text: text.clone(),
            revision: *revision,
            modified: comment.modified.map(millis),
            paired: self.ledger.told.get(key).is_some_and(|told| told.paired),
        };
        self.ledger.told.insert(key.clone(), told);
        self.ledger.waits_until(self.seen.now + LOOK_AGAIN);
        self.look_again(self.seen.now + LOOK_AGAIN);
    }

    fn post(&mut self, candidate: Candidate<'_>) {
        let Candidate { comment, key, plain, text, revision, .. } = candidate;
        let marker = self.post_marker(&key, revision, &text);
        let before = self.ledger.told.get(&key);
        if let Some(told) = before {
            // An unanswered post of an older text is proved lost; the new one takes its place.
            let old = self.post_marker(&key, told.revision, &told.text);
            self.ledger.posts.remove(&old);
        }
        let paired = before.is_some_and(|told| told.paired);
        let modified = comment.modified.map(millis);
        self.ledger.told.insert(key, Told { text, revision, modified, paired });
        let now = millis(self.seen.now);
        self.ledger.posts.insert(marker.clone(), Post::Sent { at: now, missed: None });
        let edited = revision > 0;
        let at = if edited { comment.modified.or(comment.created) } else { comment.created };
        let author = shown_author(comment.author.as_deref());
        let did = if edited { " edited a comment" } else { "" };
        let time = at.map(|at| format!(", {}", shown_time(at))).unwrap_or_default();
        let head = format!("{author}{did} in Sentinel{time}:\n");
        let tail = format!("\n{marker}");
        let note = "\n[cut: the whole comment is in Sentinel]";
        let source = shown_source(comment.author.as_deref(), at);
        let room = self.policy.defender_limit.saturating_sub(units(&head) + units(&tail));
        let body = if units(&plain) <= room {
            plain
        } else {
            self.notes.push(format!("a comment by {source} in Sentinel is cut in Defender"));
            format!("{}{note}", cut_to_units(&plain, room.saturating_sub(units(note))))
        };
        let reason =
            if edited { "a comment was edited in Sentinel" } else { "a comment was written in Sentinel" };
        self.posts.push(DefenderPost { marker, text: format!("{head}{body}{tail}"), reason, source });
    }

    fn finish(self) -> CommentPlan {
        CommentPlan {
            puts: self.puts,
            posts: self.posts,
            ledger: self.ledger,
            look_again: self.look_again,
            notes: self.notes,
            list_sentinel: false,
        }
    }
}
