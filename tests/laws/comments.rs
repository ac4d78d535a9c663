//! Comments over a small model of both sides: Defender appends and has no ids, Sentinel replaces by id. The model loses
//! answers with and without effect, lets effects come late, serves reads that lag, crashes between any two steps and
//! loses the ledger. After quiet, each analyst's comment is on the other side exactly once.

use std::collections::{BTreeMap, BTreeSet};

use lockstep::domain::comments::{
    self, CommentPlan, CommentPolicy, CommentsSeen, DefenderComment, Ledger, MOST_IN_SENTINEL, MOST_WRITES,
    SENTINEL_LIMIT, SentinelComment,
};
use lockstep::domain::model::LinkKey;
use lockstep::domain::text;
use proptest::prelude::*;
use time::{Duration, OffsetDateTime};

const APP: &str = "Lockstep";
/// Late effects and lagging reads together stay below the 30 s that two reads are apart.
const MOST_LAG_SECS: i64 = 14;
const MOST_DELAY_SECS: i64 = 14;
const SENTINEL_HOLDS: usize = 100;

fn start() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::days(20_000)
}

#[derive(Clone, Debug)]
struct Version {
    since: OffsetDateTime,
    comment: Option<SentinelComment>,
}

/// One workspace, and what Lockstep remembers of its link.
#[derive(Clone, Debug)]
struct Twin {
    key: LinkKey,
    name: String,
    ledger: Ledger,
    policy: CommentPolicy,
    /// In the order in which they were made.
    comments: Vec<(String, Vec<Version>)>,
    analysts: BTreeSet<String>,
    first_meeting: bool,
    /// Microsoft's own connector copies new comments as they stand.
    native: Option<Native>,
    again: Option<OffsetDateTime>,
    writes: usize,
    lists: usize,
    notes: Vec<String>,
}

#[derive(Clone, Debug, Default)]
struct Native {
    defender: BTreeSet<usize>,
    sentinel: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct World {
    now: OffsetDateTime,
    defender: Vec<(OffsetDateTime, DefenderComment)>,
    twins: Vec<Twin>,
    serial: usize,
}

/// What goes wrong in one run.
#[derive(Clone, Debug, Default)]
struct Trouble {
    defender_lag: i64,
    sentinel_lag: i64,
    /// Stop after so many of: storing the plan, each write, storing the outcome.
    crash_after: Option<usize>,
    /// For each write in turn: what becomes of it.
    fates: Vec<Fate>,
    /// List without being asked, as on a sweep.
    sweep: bool,
    /// The incident, and the count in it, does not lag when the list does.
    count_now: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Lands,
    LandsUnheard,
    LandsLate(i64),
    Lost,
    Refused,
}

#[derive(Clone, Debug)]
enum Act {
    Defender { author: u8, text: u8 },
    Sentinel { twin: usize, author: u8, text: u8 },
    Edit { twin: usize, which: usize },
    Run { twin: usize, trouble: Trouble },
    Forget { twin: usize },
    Wait { secs: i64 },
}

fn author(number: u8) -> Option<String> {
    ["Ann", "Bob <script>", ""].get(usize::from(number)).map(|name| (*name).to_owned())
}

impl World {
    fn new(twins: usize) -> Self {
        let twin = |number| Twin {
            key: LinkKey {
                tenant_id: "t".into(),
                incident_id: "29".into(),
                workspace: format!("/subscriptions/{number}"),
            },
            name: format!("0000000{number}-0000-4000-8000-000000000000"),
            ledger: Ledger::default(),
            policy: CommentPolicy::default(),
            comments: Vec::new(),
            analysts: BTreeSet::new(),
            first_meeting: false,
            native: None,
            again: None,
            writes: 0,
            lists: 0,
            notes: Vec::new(),
        };
        World { now: start(), defender: Vec::new(), twins: (0..twins).map(twin).collect(), serial: 0 }
    }

    fn wait(&mut self, secs: i64) {
        self.now += Duration::seconds(secs);
    }

    fn write_defender(&mut self, author: Option<&str>, text: &str) {
        let comment =
            DefenderComment { text: text.into(), author: author.map(Into::into), at: Some(self.now) };
        self.defender.push((self.now, comment));
    }

    fn write_sentinel(&mut self, twin: usize, author: Option<&str>, text: &str) -> String {
        self.serial += 1;
        let name = format!("analyst-{}", self.serial);
        let now = self.now;
        let twin = &mut self.twins[twin];
        twin.analysts.insert(name.clone());
        twin.put(&name, text, author, now);
        name
    }

    fn edit_sentinel(&mut self, twin: usize, name: &str, text: &str) {
        let author = self.twins[twin].now(name).and_then(|comment| comment.author);
        let now = self.now;
        self.twins[twin].put(name, text, author.as_deref(), now);
    }

    /// One run for one link, as the service does it: read, plan, store, write, store.
    fn run(&mut self, which: usize, trouble: &Trouble) -> CommentPlan {
        let defender: Vec<DefenderComment> = {
            let at = self.now - Duration::seconds(trouble.defender_lag);
            self.defender
                .iter()
                .filter(|(since, _)| *since <= at)
                .map(|(_, comment)| comment.clone())
                .collect()
        };
        let twin = &mut self.twins[which];
        let listed = twin.list(self.now - Duration::seconds(trouble.sentinel_lag));
        let counted = if trouble.count_now { twin.list(self.now).len() } else { listed.len() };
        let count = u32::try_from(counted).expect("few comments");
        let before = twin.ledger.clone();
        let plan = |sentinel| {
            let seen = CommentsSeen {
                link: &twin.key,
                twin: &twin.name,
                defender: &defender,
                sentinel,
                sentinel_count: Some(count),
                now: self.now,
                first_meeting: twin.first_meeting,
            };
            comments::plan(&seen, &before, &twin.policy)
        };
        let mut planned = plan(trouble.sweep.then_some(listed.as_slice()));
        if planned.list_sentinel {
            assert!(planned.puts.is_empty() && planned.posts.is_empty() && planned.ledger == before);
            twin.lists += 1;
            planned = plan(Some(listed.as_slice()));
        }
        assert!(!planned.list_sentinel, "asked for what it was given");
        assert!(planned.puts.len() + planned.posts.len() <= MOST_WRITES);
        for put in &planned.puts {
            assert!(text::units(&put.message) <= SENTINEL_LIMIT, "{} units", text::units(&put.message));
        }
        for post in &planned.posts {
            assert!(text::units(&post.text) <= twin.policy.defender_limit);
            assert!(post.text.ends_with(&post.marker));
        }
        twin.notes.extend(planned.notes.iter().cloned());
        self.carry_out(which, &planned, trouble);
        planned
    }

    fn carry_out(&mut self, which: usize, plan: &CommentPlan, trouble: &Trouble) {
        let mut steps = 0;
        let mut crashed = || {
            steps += 1;
            trouble.crash_after.is_some_and(|most| steps > most)
        };
        let mut fates = trouble.fates.iter().copied();
        if crashed() {
            return;
        }
        let now = self.now;
        // As it is kept: in the store's words.
        let mut ledger: Ledger = serde_json::to_string(&plan.ledger)
            .and_then(|text| serde_json::from_str(&text))
            .expect("plain data");
        assert_eq!(ledger, plan.ledger);
        self.twins[which].ledger = ledger.clone();
        self.twins[which].again = plan.look_again;
        let mut failed = false;
        for put in &plan.puts {
            if crashed() {
                return;
            }
            let fate = fates.next().unwrap_or(Fate::Lands);
            self.twins[which].writes += 1;
            if matches!(fate, Fate::Lands | Fate::LandsUnheard | Fate::LandsLate(_)) {
                self.twins[which].put(&put.id, &put.message, Some(APP), now);
            }
            if fate != Fate::Lands {
                failed = true;
                break;
            }
            ledger.landed_put(&put.id);
        }
        let mut stopped = false;
        for post in &plan.posts {
            if stopped {
                ledger.refused_post(&post.marker);
                continue;
            }
            if crashed() {
                return;
            }
            let fate = fates.next().unwrap_or(Fate::Lands);
            self.twins[which].writes += 1;
            let late = match fate {
                Fate::LandsLate(secs) => Duration::seconds(secs),
                _ => Duration::ZERO,
            };
            if matches!(fate, Fate::Lands | Fate::LandsUnheard | Fate::LandsLate(_)) {
                let at = now + late;
                let comment =
                    DefenderComment { text: post.text.clone(), author: Some(APP.into()), at: Some(at) };
                self.defender.push((at, comment));
                self.defender.sort_by_key(|(since, _)| *since);
            }
            match fate {
                Fate::Lands => ledger.landed_post(&post.marker),
                Fate::Refused => ledger.refused_post(&post.marker),
                Fate::LandsUnheard | Fate::LandsLate(_) | Fate::Lost => {}
            }
            stopped = fate != Fate::Lands;
        }
        if crashed() {
            return;
        }
        self.twins[which].ledger = ledger;
        if failed || stopped {
            self.twins[which].again = Some(now);
        }
    }

    /// Microsoft's connector: each new comment once to the other side, word for word.
    fn native(&mut self) {
        for which in 0..self.twins.len() {
            let Some(mut native) = self.twins[which].native.clone() else { continue };
            for (at, (_, comment)) in self.defender.clone().into_iter().enumerate() {
                if native.defender.insert(at) {
                    self.serial += 1;
                    let name = format!("native-{}", self.serial);
                    native.sentinel.insert(name.clone());
                    let now = self.now;
                    self.twins[which].put(&name, &comment.text, Some("Microsoft"), now);
                }
            }
            for comment in self.twins[which].list(self.now) {
                if native.sentinel.insert(comment.name) {
                    native.defender.insert(self.defender.len());
                    self.write_defender(Some("Microsoft"), &comment.message);
                }
            }
            self.twins[which].native = Some(native);
        }
    }

    /// No more trouble and no more edits: runs and looks again until nothing is left to do.
    fn quiet(&mut self) {
        self.quiet_with(&sweep());
    }

    fn quiet_with(&mut self, trouble: &Trouble) {
        self.wait(MOST_LAG_SECS + MOST_DELAY_SECS + 1);
        for _ in 0..60 {
            let mut busy = false;
            for which in 0..self.twins.len() {
                let plan = self.run(which, trouble);
                busy |= !plan.puts.is_empty() || !plan.posts.is_empty() || plan.look_again.is_some();
                self.wait(1);
            }
            let before = self.defender.len();
            self.native();
            busy |= self.defender.len() != before;
            self.wait(11);
            if !busy {
                return self.at_rest();
            }
        }
        panic!("never quiet: {self:#?}");
    }

    /// Planning once more plans nothing and remembers nothing new, listed or not.
    fn at_rest(&mut self) {
        for which in 0..self.twins.len() {
            for sweep in [true, false] {
                let before = self.twins[which].ledger.clone();
                let (writes, lists) = (self.twins[which].writes, self.twins[which].lists);
                let plan = self.run(which, &Trouble { sweep, ..Trouble::default() });
                assert_eq!(plan.ledger, before);
                assert_eq!(plan.look_again, None);
                assert_eq!(plan.notes, Vec::<String>::new(), "said again");
                assert_eq!(self.twins[which].writes, writes, "wrote at rest");
                assert_eq!(self.twins[which].lists, lists, "listed at rest");
                assert!(!plan.ledger.is_open());
            }
            assert!(self.twins[which].list(self.now).len() <= SENTINEL_HOLDS);
        }
    }

    /// Defender's comments by people, oldest first.
    fn by_people(&self) -> Vec<(String, String)> {
        let people = self.defender.iter().map(|(_, comment)| comment);
        let people = people.filter(|comment| !matches!(comment.author.as_deref(), Some(APP | "Microsoft")));
        people.map(|comment| (shown(comment.author.as_deref()), comment.text.clone())).collect()
    }

    /// Our posts in Defender: twin, author, whether it is an edit, text.
    fn posts(&self) -> Vec<(usize, String, bool, String)> {
        let mut posts = Vec::new();
        for (_, comment) in self.defender.iter().filter(|(_, c)| c.author.as_deref() == Some(APP)) {
            let (head, rest) = comment.text.split_once('\n').expect("a first line");
            let (body, marker) = rest.rsplit_once('\n').expect("a last line");
            let ours = |twin: &Twin| {
                let of = comments::note_marker(&twin.name, "");
                of[..13] == marker[..13]
            };
            let which = self.twins.iter().position(ours).expect("a marker of one of ours");
            let (who, _) = head.split_once(" in Sentinel").expect("an author");
            let edited = who.strip_suffix(" edited a comment");
            posts.push((which, edited.unwrap_or(who).to_owned(), edited.is_some(), body.to_owned()));
        }
        posts
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Defender { author: who, text } => {
                self.write_defender(author(*who).as_deref(), TEXTS[usize::from(*text)]);
            }
            Act::Sentinel { twin, author: who, text } => {
                let twin = twin % self.twins.len();
                let html = text::plain_to_html(TEXTS[usize::from(*text)]);
                self.write_sentinel(twin, author(*who).as_deref(), &html);
            }
            Act::Edit { twin, which } => {
                let twin = twin % self.twins.len();
                let names: Vec<String> = self.twins[twin].analysts.iter().cloned().collect();
                if let Some(name) = names.get(which % names.len().max(1)) {
                    self.serial += 1;
                    let text = format!("edited {}", self.serial);
                    self.edit_sentinel(twin, name, &text);
                }
            }
            Act::Run { twin, trouble } => {
                self.run(twin % self.twins.len(), trouble);
            }
            Act::Forget { twin } => {
                let twin = twin % self.twins.len();
                self.twins[twin].ledger = Ledger::default();
            }
            Act::Wait { secs } => self.wait(*secs),
        }
        // Two things never happen at one instant, so that order has a meaning.
        self.now += Duration::milliseconds(10);
    }
}

/// Few, so that equal ones are common; with what must be escaped and what looks like ours.
const TEXTS: &[&str] = &["ok", "ok", "a < b & c", "<script>x</script>", "two\nlines", "see [ls: nothing]"];

fn shown(author: Option<&str>) -> String {
    author.filter(|author| !author.is_empty()).unwrap_or("somebody").to_owned()
}

impl Twin {
    fn put(&mut self, name: &str, message: &str, author: Option<&str>, now: OffsetDateTime) {
        let known = self.comments.iter().position(|(known, _)| known == name);
        let created = known.and_then(|at| self.comments[at].1.first()).map_or(now, |version| version.since);
        let versions = known.map_or(0, |at| self.comments[at].1.len());
        let comment = SentinelComment {
            name: name.into(),
            message: message.into(),
            author: author.map(Into::into),
            created: Some(created),
            modified: Some(now),
            etag: format!("{name}/{versions}"),
        };
        let version = Version { since: now, comment: Some(comment) };
        match known {
            Some(at) => self.comments[at].1.push(version),
            None => self.comments.push((name.into(), vec![version])),
        }
    }

    fn delete(&mut self, name: &str, now: OffsetDateTime) {
        let versions =
            self.comments.iter_mut().find(|(known, _)| known == name).map(|(_, versions)| versions);
        versions.expect("a comment that is there").push(Version { since: now, comment: None });
    }

    fn now(&self, name: &str) -> Option<SentinelComment> {
        let (_, versions) = self.comments.iter().find(|(known, _)| known == name)?;
        versions.last()?.comment.clone()
    }

    /// As it was at a time; newest first, to show that the order of the list means nothing.
    fn list(&self, at: OffsetDateTime) -> Vec<SentinelComment> {
        let then = |versions: &Vec<Version>| {
            versions
                .iter()
                .rev()
                .find(|version| version.since <= at)
                .and_then(|version| version.comment.clone())
        };
        self.comments.iter().rev().filter_map(|(_, versions)| then(versions)).collect()
    }

    /// Our comments in Sentinel, in the order in which they were made: author and text as shown.
    fn copies(&self) -> Vec<(String, String)> {
        let ours = self.comments.iter().filter_map(|(_, versions)| versions.last()?.comment.as_ref());
        let ours = ours.filter(|comment| comment.author.as_deref() == Some(APP));
        let read = |comment: &SentinelComment| {
            let plain = text::html_to_plain(&comment.message);
            let (head, rest) = plain.split_once('\n').expect("a first line");
            let (body, marker) = rest.rsplit_once('\n').expect("a last line");
            assert!(comments::carries_marker(marker), "{marker}");
            (head.split(" in Defender").next().unwrap_or(head).to_owned(), body.to_owned())
        };
        ours.map(read).collect()
    }
}

/// What analysts wrote in Sentinel, as Defender shows it.
fn readable(html: &str) -> String {
    text::markdown_to_plain(&text::html_to_plain(html))
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Lands),
        2 => Just(Fate::LandsUnheard),
        2 => (1..=MOST_DELAY_SECS).prop_map(Fate::LandsLate),
        2 => Just(Fate::Lost),
        1 => Just(Fate::Refused),
    ]
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let crash = prop_oneof![3 => Just(None), 1 => (0_usize..6).prop_map(Some)];
    let lag = || prop_oneof![Just(0), 0..=MOST_LAG_SECS];
    let fates = prop::collection::vec(fate(), 0..6);
    (lag(), lag(), crash, fates, any::<bool>(), any::<bool>()).prop_map(
        |(defender_lag, sentinel_lag, crash_after, fates, sweep, count_now)| Trouble {
            defender_lag,
            sentinel_lag,
            crash_after,
            fates,
            sweep,
            count_now,
        },
    )
}

fn act(forget: bool) -> impl Strategy<Value = Act> {
    let texts = || 0..u8::try_from(TEXTS.len()).expect("a short list");
    prop_oneof![
        3 => (0_u8..4, texts()).prop_map(|(author, text)| Act::Defender { author, text }),
        3 => (0_usize..4, 0_u8..4, texts()).prop_map(|(twin, author, text)| Act::Sentinel { twin, author, text }),
        1 => (0_usize..4, 0_usize..9).prop_map(|(twin, which)| Act::Edit { twin, which }),
        8 => (0_usize..4, trouble()).prop_map(|(twin, trouble)| Act::Run { twin, trouble }),
        u32::from(forget) => (0_usize..4).prop_map(|twin| Act::Forget { twin }),
        4 => (1_i64..40).prop_map(|secs| Act::Wait { secs }),
    ]
}

fn script(forget: bool) -> impl Strategy<Value = Vec<Act>> {
    prop::collection::vec(act(forget), 1..40)
}

fn cases(number: u32) -> ProptestConfig {
    let asked = std::env::var("LOCKSTEP_LAWS").ok();
    let asked = asked.and_then(|laws| if laws == "thorough" { Some(5_000) } else { laws.parse().ok() });
    ProptestConfig { cases: asked.unwrap_or(number), failure_persistence: None, ..ProptestConfig::default() }
}

fn counted<T: Ord>(things: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counted = BTreeMap::new();
    for thing in things {
        *counted.entry(thing).or_default() += 1;
    }
    counted
}

/// Every comment of people once on every other side; order kept; nothing bounced; edits told at most once each.
fn exactly_once(world: &World) {
    let people = world.by_people();
    let posts = world.posts();
    for (which, twin) in world.twins.iter().enumerate() {
        // Into this workspace: Defender's own, and what other workspaces said there.
        let copies = twin.copies();
        let (carried, own): (Vec<_>, Vec<_>) = copies.into_iter().partition(|(who, _)| who.as_str() == APP);
        assert_eq!(own, people, "Defender's comments in {which}: once, and in order");
        let elsewhere = posts.iter().filter(|(of, ..)| *of != which).count();
        assert_eq!(carried.len(), elsewhere, "posts of other workspaces in {which}");
        // Out of this workspace.
        let mine: Vec<_> = posts.iter().filter(|(of, ..)| *of == which).collect();
        let mut first = Vec::new();
        for (name, versions) in twin.comments.iter().filter(|(name, _)| twin.analysts.contains(name)) {
            let texts: Vec<String> =
                versions.iter().filter_map(|v| v.comment.as_ref()).map(|c| readable(&c.message)).collect();
            let latest = texts.last().expect("a version");
            if versions.len() > 1 {
                let told = mine.iter().filter(|(.., text)| text == latest).count();
                assert_eq!(told, 1, "the latest text of {name}, {latest:?}");
            }
            for edit in texts.iter().skip(1) {
                let told = mine.iter().filter(|(.., text)| text == edit).count();
                assert!(told <= 1, "{edit:?} was told {told} times");
            }
            let who = versions[0].comment.as_ref().and_then(|comment| comment.author.clone());
            first.push((shown(who.as_deref()), texts));
        }
        let said: Vec<_> = mine.iter().filter(|(_, _, edited, _)| !edited).collect();
        assert_eq!(said.len(), first.len(), "comments of {which} in Defender: {said:#?} for {first:#?}");
        for ((_, who, _, text), (author, texts)) in said.iter().zip(&first) {
            assert_eq!(who, author, "order");
            assert!(texts.contains(text), "order: {text:?} is not of {texts:?}");
        }
    }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn each_comment_is_on_the_other_side_exactly_once(acts in script(false)) {
        let mut world = World::new(1);
        acts.iter().for_each(|act| world.act(act));
        world.quiet();
        exactly_once(&world);
    }

    /// Only edits need a sweep to be seen: what is new shows in the count, and what waits is remembered.
    #[test]
    fn new_comments_need_no_sweep(acts in script(false)) {
        let mut world = World::new(1);
        for act in acts {
            match act {
                Act::Edit { .. } => {}
                Act::Run { twin, trouble } => {
                    world.act(&Act::Run { twin, trouble: Trouble { sweep: false, ..trouble } });
                }
                other => world.act(&other),
            }
        }
        world.quiet_with(&Trouble::default());
        exactly_once(&world);
    }

    #[test]
    fn a_lost_ledger_repeats_nothing(acts in script(true)) {
        let mut world = World::new(1);
        acts.iter().for_each(|act| world.act(act));
        world.quiet();
        exactly_once(&world);
        // And once more at rest, where all there is to find is there.
        let writes = world.twins[0].writes;
        world.twins[0].ledger = Ledger::default();
        world.quiet();
        prop_assert_eq!(world.twins[0].writes, writes);
    }

    #[test]
    fn two_workspaces_of_one_incident_converge(acts in script(true)) {
        let mut world = World::new(2);
        acts.iter().for_each(|act| world.act(act));
        world.quiet();
        exactly_once(&world);
    }

    /// With both at work each comment is doubled at most by each of the two, and nothing runs in circles.
    #[test]
    fn a_connector_that_copies_word_for_word_makes_no_loop(acts in script(true), twins in 1_usize..3) {
        let mut world = World::new(twins);
        world.twins[0].native = Some(Native::default());
        for act in &acts {
            world.act(act);
            world.native();
        }
        world.quiet();
        let people = world.by_people().len();
        let posts = world.posts();
        let analysts: usize = world.twins.iter().map(|twin| twin.analysts.len()).sum();
        let edits = posts.iter().filter(|(_, _, edited, _)| *edited).count();
        // A person's comment in Defender, the connector's copy of it in Sentinel, and our post of that copy.
        prop_assert!(posts.len() - edits <= analysts + people, "{} posts", posts.len());
        // What it brings back of ours is no news to the other workspace either.
        let by = |comment: &&DefenderComment| comment.author.as_deref() == Some("Microsoft");
        let brought = world.defender.iter().map(|(_, comment)| comment).filter(by);
        let news = brought.filter(|comment| !comments::carries_marker(&comment.text)).count();
        for twin in &world.twins {
            let carried = twin.copies().into_iter().filter(|(who, _)| who.as_str() == "Microsoft").count();
            prop_assert_eq!(carried, news);
        }
    }

    /// Beside a connector, where equal texts are one comment and young ones are left to it, nothing is doubled at all.
    #[test]
    fn beside_a_connector_everything_is_there_once(
        acts in prop::collection::vec((any::<bool>(), 0_u8..3, 0_i64..20), 1..12),
        forget in prop::collection::vec(any::<bool>(), 12),
    ) {
        let mut world = World::new(1);
        world.twins[0].native = Some(Native::default());
        world.twins[0].policy.pair_equal = true;
        world.twins[0].policy.older_than = Some(Duration::minutes(2));
        for ((in_defender, text, secs), forget) in acts.iter().zip(forget) {
            match in_defender {
                true => world.write_defender(Some("Ann"), TEXTS[usize::from(*text)]),
                false => {
                    world.write_sentinel(0, Some("Bob"), TEXTS[usize::from(*text)]);
                }
            }
            if forget {
                world.twins[0].ledger = Ledger::default();
            }
            world.run(0, &Trouble::default());
            world.native();
            world.wait(*secs);
        }
        for _ in 0..5 {
            world.quiet();
            world.wait(30);
        }
        prop_assert_eq!(world.twins[0].writes, 0, "the connector had carried everything");
    }

    /// Comments of a time before the connector worked, which it never carries: we do, once.
    #[test]
    fn at_a_first_meeting_equal_comments_are_one(
        defender in prop::collection::vec(0_u8..3, 0..8),
        sentinel in prop::collection::vec(0_u8..3, 0..8),
    ) {
        let mut world = World::new(1);
        world.twins[0].first_meeting = true;
        for text in &defender {
            world.write_defender(Some("Ann"), TEXTS[usize::from(*text)]);
            world.wait(1);
        }
        for text in &sentinel {
            world.write_sentinel(0, Some("Bob"), &format!("<p>{}</p>", text::escape_html(TEXTS[usize::from(*text)])));
            world.wait(1);
        }
        world.run(0, &Trouble::default());
        world.twins[0].first_meeting = false;
        world.quiet();
        let texts = |side: &[u8]| counted(side.iter().map(|text| TEXTS[usize::from(*text)].to_owned()));
        let (there, here) = (texts(&defender), texts(&sentinel));
        let copies = counted(world.twins[0].copies().into_iter().map(|(_, text)| text));
        let posts = counted(world.posts().into_iter().map(|(.., text)| text));
        for text in TEXTS {
            let count = |side: &BTreeMap<String, usize>| side.get(*text).copied().unwrap_or_default();
            prop_assert_eq!(count(&copies), count(&there).saturating_sub(count(&here)), "{} to Sentinel", text);
            prop_assert_eq!(count(&posts), count(&here).saturating_sub(count(&there)), "{} to Defender", text);
        }
    }

    /// Nothing that strangers write breaks the text functions, and what goes to Sentinel comes back as it was.
    #[test]
    fn any_text_survives(text in "\\PC{0,60}|[<>/a-z \"'=&#;\\[\\]()*_`!\\n-]{0,80}") {
        let plain = text::html_to_plain(&text);
        let back = text::html_to_plain(&text::plain_to_html(&plain));
        prop_assert_eq!(text::collapse(&back), text::collapse(&plain));
        let _ = text::markdown_to_plain(&text);
        let _ = text::cut_to_units(&text, 7);
    }
}

fn sweep() -> Trouble {
    Trouble { sweep: true, ..Trouble::default() }
}

#[test]
fn two_hundred_and_fifty_comments_stay_below_the_limit_and_none_is_lost_in_silence() {
    for (length, full) in [(20_usize, false), (900, true)] {
        let mut world = World::new(1);
        world.write_sentinel(0, Some("Bob"), "first");
        for number in 0..250 {
            world.write_defender(Some("Ann"), &format!("<{number:04}>{}", "&".repeat(length)));
            world.wait(1);
            if number % 25 == 0 {
                world.quiet();
                world.write_sentinel(0, Some("Bob"), &format!("note {number}"));
            }
        }
        world.quiet();
        let check = |world: &World| {
            let list = world.twins[0].list(world.now);
            assert!(list.len() <= MOST_IN_SENTINEL + 11, "{} comments", list.len());
            let all: String = list.iter().map(|comment| text::html_to_plain(&comment.message)).collect();
            let mut lost = Vec::new();
            for number in 0..250 {
                match all.matches(&format!("<{number:04}>")).count() {
                    0 => lost.push(number),
                    1 => {}
                    often => panic!("{number} is there {often} times"),
                }
            }
            let said = format!("{} earlier comments are only in Defender, incident 29.", lost.len());
            assert_eq!(!lost.is_empty(), full, "{lost:?}");
            assert!(lost.is_empty() || all.contains(&said), "{lost:?} are nowhere");
            let told = world.twins[0].notes.iter().any(|note| note.starts_with(&lost.len().to_string()));
            assert!(lost.is_empty() || told);
        };
        check(&world);
        // One more costs one write, and a lost ledger none.
        let writes = world.twins[0].writes;
        world.twins[0].ledger = Ledger::default();
        world.quiet();
        assert_eq!(world.twins[0].writes, writes);
        check(&world);
        world.write_defender(Some("Ann"), "<9999>");
        world.quiet();
        assert_eq!(world.twins[0].writes, writes + 1);
        let size = serde_json::to_string(&world.twins[0].ledger).unwrap().len();
        assert!(size < 8_000, "the ledger takes {size} bytes");
    }
}

/// A read that lacks the newest comments must not take them out of the digest.
#[test]
fn a_lagging_read_takes_nothing_out_of_the_digest() {
    let mut world = World::new(1);
    for number in 0..100 {
        world.write_defender(Some("Ann"), &format!("<{number:04}>"));
        world.wait(1);
    }
    world.quiet();
    world.write_defender(Some("Ann"), "<0100>");
    world.run(0, &sweep());
    world.wait(5);
    let writes = world.twins[0].writes;
    world.run(0, &Trouble { defender_lag: 10, ..sweep() });
    assert_eq!(world.twins[0].writes, writes);
}

#[test]
fn long_comments_are_split_in_sentinel_and_cut_in_defender() {
    let mut world = World::new(1);
    // Sixty thousand units as HTML, in words.
    let long: String = (0..10_000).map(|number| format!("{number:04}& ")).collect();
    world.write_defender(Some("Ann"), &long);
    world.write_sentinel(0, Some("Bob"), &format!("<p>{}</p>", "word 😀".repeat(6_000)));
    world.quiet();
    let copies = world.twins[0].list(world.now);
    let mut parts: Vec<String> = Vec::new();
    for part in 1..=4 {
        let head = format!("(part {part} of 4)");
        let found = copies.iter().find(|comment| comment.message.contains(&head));
        let plain = text::html_to_plain(&found.expect("every part is there").message);
        parts.push(plain.lines().nth(1).expect("its text").to_owned());
    }
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&parts.join(" ")), words(&long), "no word is cut or lost");
    let posts = world.posts();
    assert_eq!(posts.len(), 1);
    assert!(posts[0].3.ends_with("\n[cut: the whole comment is in Sentinel]"));
    let (_, post) = &world.defender[1];
    assert!((29_900..=30_000).contains(&text::units(&post.text)), "{}", text::units(&post.text));
    assert_eq!(world.twins[0].notes.iter().filter(|note| note.contains("cut")).count(), 2);
}

#[test]
fn what_is_written_says_who_and_when_and_where() {
    let mut world = World::new(1);
    world.run(0, &sweep());
    world.wait(60);
    world.write_defender(Some("Ann <b>"), "x < y\nsecond");
    let name =
        world.write_sentinel(0, Some("Bob"), "<p>Blocked <a href=\"https://x.y\">it</a></p><p>**now**</p>");
    world.run(0, &Trouble::default());
    world.wait(3600);
    world.edit_sentinel(0, &name, "<p>Blocked</p>");
    world.run(0, &sweep());
    let copy = world.twins[0].list(world.now).into_iter().find(|c| c.author.as_deref() == Some(APP)).unwrap();
    let (text, marker) = copy.message.split_once("<p><i>").unwrap();
    assert_eq!(
        text,
        "<p><b>Ann &lt;b&gt;</b> in Defender, 2024-10-04 00:01 UTC</p><p>x &lt; y<br>second</p>"
    );
    assert!(marker.starts_with("[ls:") && marker.ends_with("]</i></p>"), "{marker}");
    let posts: Vec<&str> =
        world.defender.iter().skip(1).map(|(_, c)| c.text.rsplit_once('\n').unwrap().0).collect();
    assert_eq!(
        posts,
        [
            "Bob in Sentinel, 2024-10-04 00:01 UTC:\nBlocked it (https://x.y)\nnow",
            "Bob edited a comment in Sentinel, 2024-10-04 01:01 UTC:\nBlocked",
        ]
    );
}

#[test]
fn an_edit_gives_one_notice_also_when_it_is_taken_back() {
    for edits in [true, false] {
        let mut world = World::new(1);
        world.twins[0].policy.edits = edits;
        let name = world.write_sentinel(0, Some("Bob"), "one");
        world.quiet();
        // Only dressed differently.
        for dressed in ["<p>one</p>", "<div>\n <b>one</b></div>", "**one**"] {
            world.edit_sentinel(0, &name, dressed);
            world.quiet();
        }
        assert_eq!(world.posts().len(), 1);
        for text in ["two", "one", "two"] {
            world.edit_sentinel(0, &name, text);
            world.quiet();
        }
        let told: Vec<(bool, String)> =
            world.posts().into_iter().map(|(_, _, edit, text)| (edit, text)).collect();
        let all = [(false, "one"), (true, "two"), (true, "one"), (true, "two")];
        let all: Vec<_> = all.map(|(edit, text)| (edit, text.to_owned())).to_vec();
        assert_eq!(told, if edits { &all[..] } else { &all[..1] });
        // A read that lags behind the edit is not another edit.
        world.edit_sentinel(0, &name, "three");
        world.run(0, &sweep());
        world.wait(2);
        world.run(0, &Trouble { sentinel_lag: 5, ..sweep() });
        world.quiet();
        assert_eq!(world.posts().len(), if edits { 5 } else { 1 });
        world.twins[0].ledger = Ledger::default();
        world.quiet();
        if edits {
            assert_eq!(world.posts().len(), 5, "a lost ledger");
        }
        // Deleting says nothing.
        let now = world.now;
        world.twins[0].delete(&name, now);
        world.quiet();
        assert_eq!(world.posts().len(), if edits { 5 } else { 1 });
    }
}

#[test]
fn what_is_no_analysts_comment_stays_where_it_is_and_is_said_once() {
    let mut world = World::new(1);
    world.twins[0].policy.ignore = vec!["Sent By Runbook".into(), " ".into()];
    world.write_defender(Some("XSOAR"), "Contained. Mirrored from Cortex XSOAR");
    world.write_defender(Some("Ann"), " \n ");
    world.write_defender(Some("Ann"), "[ServiceNow] INC1: text");
    world.write_defender(Some("Ann"), "I asked [ServiceNow] people");
    world.write_sentinel(0, Some("Bob"), "<p>&nbsp;</p>");
    world.write_sentinel(0, Some("Bob"), "<i>sent by</i> RUNBOOK 7");
    world.write_sentinel(0, Some("Bob"), "digest <p>[ls:12345678/n1234567890]</p>");
    world.write_sentinel(0, Some("Bob"), "see [ls:12345678/d1234567890], I agree");
    world.quiet();
    assert_eq!(world.twins[0].copies().len(), 1);
    assert_eq!(world.posts(), []);
    let notes = &world.twins[0].notes;
    assert_eq!(notes.len(), 6, "{notes:#?}");
    for (why, times) in [("empty", 2), ("another synchroniser's", 3), ("quotes a marker", 1)] {
        assert_eq!(notes.iter().filter(|note| note.contains(why)).count(), times, "{why}: {notes:#?}");
    }
}

#[test]
fn what_is_refused_for_good_is_parked_until_its_text_changes() {
    let mut world = World::new(1);
    world.run(0, &sweep());
    world.wait(60);
    world.write_defender(Some("Ann"), "bad");
    world.write_defender(Some("Ann"), "good");
    let name = world.write_sentinel(0, Some("Bob"), "bad");
    world.write_sentinel(0, Some("Bob"), "good");
    let plan = world.run(0, &Trouble { crash_after: Some(1), ..sweep() });
    world.twins[0].ledger.parked_put(&plan.puts[0].id, "400 BadRequest");
    world.twins[0].ledger.parked_post(&plan.posts[0].marker, "400 BadRequest");
    assert_eq!(world.twins[0].ledger.parked().collect::<Vec<_>>(), ["400 BadRequest"; 2]);
    world.quiet();
    assert_eq!(world.twins[0].copies(), [("Ann".into(), "good".into())]);
    let texts =
        |world: &World| world.posts().into_iter().map(|(.., edit, text)| (edit, text)).collect::<Vec<_>>();
    assert_eq!(texts(&world), [(false, "good".into())]);
    world.edit_sentinel(0, &name, "better");
    world.quiet();
    assert_eq!(texts(&world), [(false, "good".into()), (false, "better".into())]);
}

/// The list costs a call: it is asked for when something may have changed there, and not otherwise.
#[test]
fn the_list_is_asked_for_only_when_it_may_say_something() {
    let mut world = World::new(1);
    let calm = Trouble::default();
    world.run(0, &calm);
    world.wait(60);
    for number in 0..5 {
        world.write_defender(Some("Ann"), &format!("{number}"));
        world.run(0, &calm);
        world.wait(5);
        world.run(0, &calm);
    }
    assert_eq!((world.twins[0].writes, world.twins[0].lists), (5, 0), "our own comments are counted");
    world.write_sentinel(0, Some("Bob"), "x");
    world.run(0, &calm);
    world.run(0, &calm);
    assert_eq!((world.twins[0].writes, world.twins[0].lists), (6, 1));
    // A lost answer is cleared up by Defender's reads alone if the marker shows.
    world.write_sentinel(0, Some("Bob"), "y");
    world.run(0, &Trouble { fates: vec![Fate::LandsUnheard], ..Trouble::default() });
    world.wait(5);
    let plan = world.run(0, &calm);
    assert_eq!((world.twins[0].lists, plan.ledger.is_open(), plan.look_again), (2, false, None));
    // If it does not, the list is asked for when the time has come to repeat.
    world.write_sentinel(0, Some("Bob"), "z");
    world.run(0, &Trouble { fates: vec![Fate::Lost], ..Trouble::default() });
    world.wait(5);
    let plan = world.run(0, &calm);
    assert_eq!((world.twins[0].lists, plan.look_again), (3, Some(world.now + comments::LOOK_AGAIN)));
    world.wait(29);
    world.run(0, &calm);
    assert_eq!((world.twins[0].lists, world.posts().len()), (3, 2));
    world.wait(1);
    world.run(0, &calm);
    assert_eq!((world.twins[0].lists, world.posts().len()), (4, 3));
}

/// More than one plan takes, and a list that lags behind the count: both are come back to, with no new hint.
#[test]
fn what_waits_is_remembered() {
    let calm = Trouble::default();
    let mut world = World::new(1);
    world.run(0, &calm);
    world.wait(60);
    for number in 0..60 {
        world.write_sentinel(0, Some("Bob"), &format!("{number}"));
        world.wait(1);
    }
    for sent in [25, 50, 60] {
        world.run(0, &calm);
        assert_eq!(world.posts().len(), sent);
    }
    world.wait(60);
    world.write_sentinel(0, Some("Bob"), "late");
    let lagging = Trouble { sentinel_lag: 5, count_now: true, ..Trouble::default() };
    let plan = world.run(0, &lagging);
    assert_eq!((world.posts().len(), plan.look_again), (60, Some(world.now + comments::LOOK_AGAIN)));
    // A count that no list ever reaches is not run after for ever.
    world.wait(1);
    assert_eq!(world.run(0, &Trouble { sentinel_lag: 5, ..lagging }).look_again, None);
    world.wait(30);
    world.run(0, &calm);
    assert_eq!(world.posts().len(), 61);
}

/// The connector comes so late that we have carried a comment: its copy is the same comment, not an answer to it.
#[test]
fn a_connector_that_comes_late_is_not_answered() {
    let mut world = World::new(1);
    world.twins[0].policy.pair_equal = true;
    world.twins[0].policy.older_than = Some(Duration::minutes(2));
    world.run(0, &sweep());
    world.wait(60);
    world.write_defender(Some("Ann"), "from Defender");
    world.write_sentinel(0, Some("Bob"), "<p>from Sentinel</p>");
    world.wait(300);
    world.quiet();
    assert_eq!(world.twins[0].writes, 2);
    world.write_sentinel(0, Some("Microsoft"), "from Defender");
    world.write_defender(Some("Microsoft"), "from Sentinel");
    world.wait(300);
    world.quiet();
    assert_eq!(world.twins[0].writes, 2);
}

#[test]
fn either_way_can_be_switched_off() {
    for (to_sentinel, to_defender) in [(true, false), (false, true), (false, false)] {
        let mut world = World::new(1);
        world.twins[0].policy.to_sentinel = to_sentinel;
        world.twins[0].policy.to_defender = to_defender;
        world.write_defender(Some("Ann"), "a");
        world.write_sentinel(0, Some("Bob"), "b");
        world.quiet();
        assert_eq!(world.twins[0].copies().len(), usize::from(to_sentinel));
        assert_eq!(world.posts().len(), usize::from(to_defender));
    }
}
