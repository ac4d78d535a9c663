//! What must hold, judged by somebody who saw everything: every edit with its time, every write with what it replaced.
//! The words are translated here by a table of its own, so that a wrong mapping is no excuse.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use lockstep::domain::mapping::description_without_block;
use lockstep::domain::model::*;
use lockstep::domain::plan::LinkState;
use lockstep::domain::policy::Field;
use time::OffsetDateTime;

use crate::store::Disk;

/// For how long after an edit a write may rest on a read that did not show it: a replica lags, and then calls take time.
const UNSEEN: time::Duration = time::Duration::seconds(20);

/// What people and programs edit, and what may be lost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cell {
    Title,
    Description,
    Severity,
    Status,
    Owner,
    Verdict,
    Comment,
    Tag(String),
}

const SCALARS: [Cell; 7] =
    [Cell::Title, Cell::Description, Cell::Severity, Cell::Status, Cell::Owner, Cell::Verdict, Cell::Comment];

impl Cell {
    pub(crate) fn field(&self) -> Field {
        match self {
            Cell::Title => Field::Title,
            Cell::Description => Field::Description,
            Cell::Severity => Field::Severity,
            Cell::Status => Field::Status,
            Cell::Owner => Field::Owner,
            Cell::Verdict => Field::Verdict,
            Cell::Comment => Field::Comment,
            Cell::Tag(_) => Field::Tags,
        }
    }
}

/// A value in its side's words, and what it means on both; `None` where a side has no say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) native: String,
    pub(crate) means: Option<String>,
}

/// One side of one incident.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Face {
    words: BTreeMap<usize, Word>,
    pub(crate) tags: BTreeSet<String>,
    /// Merged away in Defender.
    pub(crate) merged: bool,
    /// Closed in Sentinel.
    pub(crate) closed: bool,
    /// Labelled in Sentinel as merged away.
    pub(crate) labelled_redirected: bool,
}

fn plain(text: Option<&str>) -> String {
    text.unwrap_or_default().replace("\r\n", "\n").trim().to_owned()
}

/// Labels that the service writes for purposes of its own are no tags.
fn tag(name: &str) -> Option<String> {
    let name = name.trim().to_lowercase();
    (!name.is_empty() && name != "redirected" && !name.starts_with("determination/")).then_some(name)
}

impl Face {
    /// `one_open` where Graph refuses `inProgress`: then New and Active are one.
    pub(crate) fn of_defender(says: &DefenderSays, one_open: bool) -> Self {
        use DefenderClassification as C;
        use DefenderStatus as S;
        let (title, description) = (plain(says.title.as_deref()), plain(says.description.as_deref()));
        let owner = plain(says.owner.as_deref());
        let comment = plain(says.resolving_comment.as_deref());
        let status = match &says.status {
            S::Active | S::InProgress if one_open => Some("open"),
            S::Active => Some("new"),
            S::InProgress => Some("active"),
            S::Resolved | S::Redirected => Some("closed"),
            _ => None,
        };
        let verdict = match &says.classification {
            C::Unknown => Some("none"),
            C::TruePositive => Some("true"),
            C::FalsePositive => Some("false"),
            C::InformationalExpectedActivity => Some("benign"),
            C::Other(_) => None,
        };
        let severity = says.severity.as_str().to_owned();
        let words = [
            (title.clone(), Some(title).filter(|title| !title.is_empty())),
            (description.clone(), Some(description)),
            (severity.clone(), Some(severity.to_lowercase()).filter(|word| word != "unknown")),
            (says.status.as_str().to_owned(), status.map(str::to_owned)),
            (owner.to_lowercase(), Some(owner.to_lowercase())),
            (format!("{}/{}", says.classification, says.determination), verdict.map(str::to_owned)),
            (comment.clone(), Some(comment)),
        ];
        Self {
            words: words.into_iter().map(|(native, means)| Word { native, means }).enumerate().collect(),
            tags: says.tags.iter().filter_map(|name| tag(name)).collect(),
            merged: says.status == S::Redirected,
            closed: false,
            labelled_redirected: false,
        }
    }

    pub(crate) fn of_sentinel(says: &SentinelSays, one_open: bool) -> Self {
        use SentinelClassification as C;
        use SentinelStatus as S;
        let (title, description) = (
            plain(Some(&says.title)),
            plain(description_without_block(says.description.as_deref()).as_deref()),
        );
        let SentinelOwner { object_id, email, upn, name, group: _ } = &says.owner;
        let named = [upn, email, name].into_iter().map(|name| plain(name.as_deref())).find(|n| !n.is_empty());
        let owner = named.clone().or(object_id.clone()).unwrap_or_default().to_lowercase();
        let nameless = named.is_none() && object_id.is_some();
        let closed = says.status == S::Closed;
        let status = match &says.status {
            S::New | S::Active if one_open => Some("open"),
            S::New => Some("new"),
            S::Active => Some("active"),
            S::Closed => Some("closed"),
            S::Other(_) => None,
        };
        let verdict = match says.classification.as_ref().filter(|_| closed) {
            Some(C::Undetermined) => Some("none"),
            Some(C::TruePositive) => Some("true"),
            Some(C::FalsePositive) => Some("false"),
            Some(C::BenignPositive) => Some("benign"),
            Some(C::Other(_)) | None => None,
        };
        let verdict_words = match says.classification.as_ref().filter(|_| closed) {
            Some(classification) => {
                format!("{classification}/{}", says.reason.as_ref().map_or("", |reason| reason.as_str()))
            }
            None => String::new(),
        };
        let comment = if closed { plain(says.comment.as_deref()) } else { String::new() };
        let words = [
            (title.clone(), Some(title)),
            (description.clone(), Some(description)),
            (says.severity.as_str().to_owned(), Some(says.severity.as_str().to_lowercase())),
            (says.status.as_str().to_owned(), status.map(str::to_owned)),
            (owner.clone(), Some(owner).filter(|_| !nameless)),
            (verdict_words, verdict.map(str::to_owned)),
            (comment.clone(), Some(comment).filter(|_| closed)),
        ];
        Self {
            words: words.into_iter().map(|(native, means)| Word { native, means }).enumerate().collect(),
            tags: says.labels.iter().filter(|l| !l.auto).filter_map(|label| tag(&label.name)).collect(),
            merged: false,
            closed,
            labelled_redirected: says.labels.iter().any(|l| l.name.trim().eq_ignore_ascii_case("redirected")),
        }
    }

    pub(crate) fn word(&self, cell: &Cell) -> Word {
        let at = SCALARS.iter().position(|scalar| scalar == cell);
        match (at, cell) {
            (Some(at), _) => self.words[&at].clone(),
            (None, Cell::Tag(name)) => {
                let word = if self.tags.contains(name) { "there" } else { "not there" };
                Word { native: word.to_owned(), means: Some(word.to_owned()) }
            }
            (None, _) => unreachable!("every scalar has its place"),
        }
    }

    fn cells(a: &Face, b: &Face) -> Vec<Cell> {
        let tags = a.tags.union(&b.tags).cloned().map(Cell::Tag);
        SCALARS.into_iter().chain(tags).collect()
    }
}

/// Somebody's edit of one cell, the last one on its side.
#[derive(Clone, Debug)]
struct Edit {
    at: OffsetDateTime,
    word: Word,
    /// Both sides have meant the same since.
    carried: bool,
    /// The application has made it so: whoever edits the other side now does so on top of this.
    copied: bool,
    /// It is still what this side says.
    stands: bool,
    /// Since the last quiet point.
    fresh: bool,
    /// The other side was edited by somebody who had seen it.
    superseded: Option<OffsetDateTime>,
}

type Place = (String, Side, Cell);

/// What the application knows of one side of an incident, and what it may have written there.
pub(crate) fn known(disk: &Disk, (id, side): (&str, Side), one_open: bool) -> Vec<Face> {
    let link = disk.links.values().find(|link| link.key.incident_id == id);
    let state = link.and_then(|link| serde_json::from_str::<LinkState>(&link.state).ok());
    let says = state.into_iter().flat_map(|state| {
        let intents = state.intents.into_iter().filter(move |intent| intent.side == side);
        let known = state.known.map(|known| (known.defender, known.sentinel));
        known.into_iter().chain(intents.map(|intent| (intent.defender, intent.sentinel)))
    });
    says.map(|(defender, sentinel)| match side {
        Side::Defender => Face::of_defender(&defender, one_open),
        Side::Sentinel => Face::of_sentinel(&sentinel, one_open),
    })
    .collect()
}

/// The ledger.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    edits: BTreeMap<Place, Edit>,
    /// Cells that lost something where nothing could be done, until the next quiet point.
    tainted: BTreeSet<(String, Cell)>,
    /// What both sides meant at the last quiet point.
    rest: BTreeMap<(String, Cell), String>,
    /// Titles and descriptions that were ever edited where they do not flow from.
    pub(crate) own_words: BTreeSet<(String, Cell)>,
    /// Losses in Graph's window: the application could not have seen the edit.
    pub(crate) window: u32,
    /// Values that a request changed after its sender had given it up.
    pub(crate) late: u32,
    /// Overwrites that the journal has as clashes.
    pub(crate) clashes: u32,
    pub(crate) edited: u32,
    /// Several versions of a Defender incident may have one time: then nobody can tell a read that lags.
    pub(crate) equal_times: bool,
    /// What does not flow both ways.
    pub(crate) one_way: HashSet<Field>,
    /// Incidents that were ever merged away, and those that they were merged into.
    merged: BTreeSet<String>,
    winners: BTreeSet<String>,
    pub(crate) violations: Vec<String>,
}

/// Says nothing that could be lost: not a verdict, no comment that goes with it.
fn says_nothing(side: Side, cell: &Cell, word: &Word) -> bool {
    word.means.is_none()
        || (side == Side::Sentinel
            && match cell {
                Cell::Verdict => word.means.as_deref() == Some("none"),
                Cell::Comment => word.native.is_empty(),
                _ => false,
            })
}

fn clashed(disk: &Disk, id: &str, cell: &Cell, since: OffsetDateTime) -> bool {
    let field = serde_json::json!(cell.field());
    disk.journal.iter().rev().any(|line| {
        line.kind == "clash"
            && line.at >= since
            && line.link.incident_id == id
            && line.detail["field"] == field
    })
}

impl Truth {
    /// Somebody who is not the application changed one side.
    pub(crate) fn edited(
        &mut self,
        (id, side): (&str, Side),
        (before, after): (&Face, &Face),
        other: Option<&Face>,
        known: &[Face],
        now: OffsetDateTime,
    ) -> Vec<String> {
        let mut told = Vec::new();
        if before.merged || after.merged {
            self.merged.insert(id.to_owned());
        }
        for cell in Face::cells(before, after) {
            let (was, is) = (before.word(&cell), after.word(&cell));
            if was.native == is.native {
                continue;
            }
            self.edited += 1;
            told.push(format!("{cell:?} {:?} -> {:?}", was.native, is.native));
            if side == Side::Sentinel {
                self.own_words.insert((id.to_owned(), cell.clone()));
            }
            // Back to what the application last knew: nobody can tell it from never having been changed. Nor what an
            // unanswered write of ours would have put there from that write.
            let undone = known.iter().any(|known| known.word(&cell).native == is.native);
            if let Some(theirs) = self.edits.get_mut(&(id.to_owned(), side.other(), cell.clone()))
                && theirs.copied
                && !undone
            {
                theirs.superseded = Some(now);
            }
            let edit = Edit {
                at: now,
                word: is,
                carried: false,
                copied: false,
                stands: true,
                fresh: true,
                superseded: None,
            };
            self.edits.insert((id.to_owned(), side, cell), edit);
        }
        let (defender, sentinel) = match side {
            Side::Defender => (Some(after), other),
            Side::Sentinel => (other, Some(after)),
        };
        self.meet(id, defender, sentinel, &BTreeSet::new());
        told
    }

    /// Marks what both sides mean by now; `written` is what the application has just made so.
    fn meet(&mut self, id: &str, defender: Option<&Face>, sentinel: Option<&Face>, written: &BTreeSet<Cell>) {
        let (Some(defender), Some(sentinel)) = (defender, sentinel) else { return };
        for ((_, _, cell), edit) in self.edits.iter_mut().filter(|((of, ..), _)| of == id) {
            let (d, s) = (defender.word(cell).means, sentinel.word(cell).means);
            let same = edit.stands && d.is_some() && d == s;
            edit.carried |= same;
            edit.copied |= same && written.contains(cell);
        }
    }

    /// The application changed one side. `seen` is what it was last shown of it, where nothing else guards the write.
    pub(crate) fn wrote(
        &mut self,
        (id, side): (&str, Side),
        (before, after): (&Face, &Face),
        other: Option<&Face>,
        seen: Option<&Face>,
        disk: &Disk,
        (late, one_open, now): (bool, bool, OffsetDateTime),
    ) -> Vec<String> {
        let mut told = Vec::new();
        let link = disk.links.values().find(|link| link.key.incident_id == id);
        let Some(state) = link.and_then(|link| serde_json::from_str::<LinkState>(&link.state).ok()) else {
            self.violations.push(format!("{side} {id} was written without a stored link"));
            return told;
        };
        let mut written = BTreeSet::new();
        for cell in Face::cells(before, after) {
            let (was, is) = (before.word(&cell), after.word(&cell));
            if was.native == is.native {
                continue;
            }
            written.insert(cell.clone());
            told.push(format!("{cell:?} {:?} -> {:?}", was.native, is.native));
            if late {
                // Given up by its sender, and nothing guards it: the window was open until now.
                self.late += 1;
                if side == Side::Sentinel {
                    self.own_words.insert((id.to_owned(), cell.clone()));
                }
                let along =
                    if cell == Cell::Status { vec![Cell::Verdict, Cell::Comment] } else { Vec::new() };
                let cells = along.into_iter().chain([cell.clone()]);
                self.tainted.extend(cells.map(|cell| (id.to_owned(), cell)));
                if let Some(edit) = self.edits.get_mut(&(id.to_owned(), side, cell)) {
                    edit.stands = false;
                }
                continue;
            }
            if let Some(why) = self.undoes(id, side, &cell, &is, other, now) {
                self.violations.push(why);
            }
            let Some(edit) = self.edits.get_mut(&(id.to_owned(), side, cell.clone())) else { continue };
            if !std::mem::replace(&mut edit.stands, false) || edit.carried {
                continue;
            }
            if says_nothing(side, &cell, &edit.word) {
                continue;
            }
            if seen.is_some_and(|seen| seen.word(&cell).native != was.native) {
                self.window += 1;
                self.tainted.insert((id.to_owned(), cell));
                continue;
            }
            if clashed(disk, id, &cell, edit.at) {
                self.clashes += 1;
                continue;
            }
            // Sentinel has no verdict while it is open. Where it does not flow, reopening takes it, and the journal's
            // line of the write has it.
            let derived = matches!(cell, Cell::Verdict | Cell::Comment);
            if derived && side == Side::Sentinel && !after.closed && self.one_way.contains(&Field::Verdict) {
                continue;
            }
            // Edited and edited back before anybody looked.
            let face = |d: &DefenderSays, s: &SentinelSays| match side {
                Side::Defender => Face::of_defender(d, one_open),
                Side::Sentinel => Face::of_sentinel(s, one_open),
            };
            let agreed = state.known.iter().map(|known| face(&known.defender, &known.sentinel));
            let intended = state.intents.iter().map(|intent| face(&intent.defender, &intent.sentinel));
            if agreed.chain(intended).any(|face| face.word(&cell).native == was.native) {
                continue;
            }
            self.violations.push(format!(
                "{side} {id}: {cell:?} {:?}, edited at {}, was overwritten with {:?} and the journal has no clash",
                was.native, edit.at, is.native
            ));
        }
        let (defender, sentinel) = match side {
            Side::Defender => (Some(after), other),
            Side::Sentinel => (other, Some(after)),
        };
        self.meet(id, defender, sentinel, &written);
        told
    }

    /// A value that goes neither with what the other side says nor with what anybody has changed there just now is an
    /// echo: something that the application had carried over, or had read and then forgotten, comes back.
    fn undoes(
        &self,
        id: &str,
        side: Side,
        cell: &Cell,
        is: &Word,
        other: Option<&Face>,
        now: OffsetDateTime,
    ) -> Option<String> {
        let there = other?.word(cell);
        let derived = matches!(cell, Cell::Verdict | Cell::Comment);
        let same = is.means.is_none() || there.means.is_none() || is.means == there.means;
        let inherited = self.winners.contains(id) && matches!(cell, Cell::Owner | Cell::Tag(_));
        let lost = self.tainted.contains(&(id.to_owned(), cell.clone()));
        let tainted = inherited || lost || self.equal_times || self.merged.contains(id);
        if derived || same || tainted || self.one_way.contains(&cell.field()) {
            return None;
        }
        let edit = self.edits.get(&(id.to_owned(), side.other(), cell.clone()));
        let unseen = edit.is_some_and(|edit| !edit.copied && now - edit.at < UNSEEN);
        (!unseen).then(|| {
            format!(
                "{side} {id}: {cell:?} became {:?}, though the other side says {:?} and nobody has just changed it: an \
                 echo",
                is.native, there.native
            )
        })
    }

    /// Both sides at rest: equal in what flows both ways, and no edit lost.
    pub(crate) fn rest(
        &mut self,
        id: &str,
        (defender, sentinel): (&Face, &Face),
        flows_both_ways: impl Fn(Field) -> bool,
        disk: &Disk,
    ) -> Result<(), String> {
        if defender.merged {
            self.rest.retain(|(of, _), _| of != id);
            // Somebody who opens it again has reasons, and is left alone.
            let opened = self.own_words.contains(&(id.to_owned(), Cell::Status));
            if !sentinel.closed && !opened && flows_both_ways(Field::Status) {
                return Err(format!("{id} was merged away, its twin is open"));
            }
            return Ok(());
        }
        // What was edited on the twin while the incident was merged away is not made up for when it comes back, and the
        // pointer stays in its comment.
        if self.merged.contains(id) {
            return Ok(());
        }
        let mut cells: BTreeSet<Cell> = Face::cells(defender, sentinel).into_iter().collect();
        cells.extend(self.edits.keys().filter(|(of, ..)| of == id).map(|(.., cell)| cell.clone()));
        cells.extend(self.rest.keys().filter(|(of, _)| of == id).map(|(_, cell)| cell.clone()));
        for cell in cells {
            let (d, s) = (defender.word(&cell), sentinel.word(&cell));
            let both = flows_both_ways(cell.field());
            let derived = matches!(cell, Cell::Verdict | Cell::Comment);
            let own = self.own_words.contains(&(id.to_owned(), cell.clone()));
            let differ = d.means.is_some() && s.means.is_some() && d.means != s.means;
            if differ && (both || (!own && matches!(cell, Cell::Title | Cell::Description))) {
                return Err(format!("{id}: {cell:?} is {:?} here and {:?} there", d.native, s.native));
            }
            if !both || self.tainted.contains(&(id.to_owned(), cell.clone())) {
                continue;
            }
            let last = |side| self.edits.get(&(id.to_owned(), side, cell.clone())).filter(|edit| edit.fresh);
            let lasts = [last(Side::Defender), last(Side::Sentinel)];
            let fits = |means: &Option<String>| means.is_none() || *means == d.means || *means == s.means;
            let was = self.rest.get(&(id.to_owned(), cell.clone()));
            if lasts.iter().all(Option::is_none) {
                if !fits(&was.cloned()) {
                    return Err(format!(
                        "{id}: {cell:?} is {:?}, and nobody edited it: {was:?} before",
                        d.native
                    ));
                }
                continue;
            }
            let may = lasts.iter().flatten().any(|edit| {
                let over = edit.superseded.is_some_and(|at| !clashed(disk, id, &cell, at));
                !over && fits(&edit.word.means)
            });
            // Who closes without a word leaves what was said before, and that may have come and gone since.
            let silent =
                last(Side::Sentinel).is_some_and(|edit| says_nothing(Side::Sentinel, &cell, &edit.word));
            if !(may || derived && silent) {
                let said: Vec<_> = lasts.iter().flatten().map(|edit| (&edit.word.native, edit.at)).collect();
                return Err(format!(
                    "{id}: {cell:?} is {:?}, but people said {said:?}: an edit is lost",
                    d.native
                ));
            }
        }
        let meanings = Face::cells(defender, sentinel)
            .into_iter()
            .filter_map(|cell| Some(((id.to_owned(), cell.clone()), defender.word(&cell).means?)));
        let meanings: Vec<_> = meanings.collect();
        self.rest.retain(|(of, _), _| of != id);
        self.rest.extend(meanings);
        Ok(())
    }

    pub(crate) fn was_merged(&self, id: &str) -> bool {
        self.merged.contains(id)
    }

    /// What an incident inherits from one that is merged into it is nobody's edit: its owner, and these tags.
    pub(crate) fn inherits(&mut self, id: &str, loser: [Option<&Face>; 2]) {
        self.winners.insert(id.to_owned());
        let tags = loser.into_iter().flatten().flat_map(|face| face.tags.iter().cloned().map(Cell::Tag));
        let cells: Vec<Cell> = tags.chain([Cell::Owner]).collect();
        self.tainted.extend(cells.into_iter().map(|cell| (id.to_owned(), cell)));
    }

    /// What came before the quiet point is settled.
    pub(crate) fn settle(&mut self) {
        self.edits.values_mut().for_each(|edit| edit.fresh = false);
        self.tainted.clear();
    }
}
