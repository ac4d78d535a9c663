//! The sweep over lists: what it costs, what it finds, and what it does when a side is in trouble.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lockstep::app::metrics::Metrics;
use lockstep::app::reconcile::twin_id;
use lockstep::app::routes::{Route, Routes};
use lockstep::app::sweep::{ScopeSweep, SweepOptions, Sweeper, Swept};
use lockstep::domain::comments::{self, CommentPolicy, CommentsSeen};
use lockstep::domain::failure::{Class, Effect, Failure};
use lockstep::domain::mapping::new_twin;
use lockstep::domain::model::*;
use lockstep::domain::plan::{Intent, Known, LinkState};
use lockstep::domain::policy::{Field, Policy};
use lockstep::ports::{Clock, Defender, LinkRecord, Page, Sentinel, Store};
use time::OffsetDateTime;

use crate::life::{Fuse, VirtualClock};
use crate::plant;
use crate::store::{Disk, Memory};

const TENANT: &str = "tenant";
const WORKSPACE: &str = "/subscriptions/s/workspaces/w";

pub(crate) fn key(id: &str) -> LinkKey {
    plant::key(TENANT, id, WORKSPACE)
}

/// Both sides as lists that are at rest unless a test says otherwise, with the calls counted.
#[derive(Default)]
pub(crate) struct Shelves {
    pub(crate) defender: BTreeMap<String, DefenderIncident>,
    pub(crate) sentinel: BTreeMap<String, SentinelIncident>,
    pub(crate) lists: [u32; 2],
    pub(crate) gets: u32,
    /// What the next pages of Defender's list answer instead.
    pub(crate) trouble: Vec<Class>,
    /// Sentinel's comments by twin, and whose were listed.
    pub(crate) comments: BTreeMap<String, Vec<SentinelComment>>,
    pub(crate) listed: Vec<String>,
}

pub(crate) struct Shelf(pub(crate) Arc<Mutex<Shelves>>);

fn refusal(side: Side, class: Class) -> Failure {
    Failure {
        class,
        side: Some(side),
        code: "planted".into(),
        message: "planted".into(),
        effect: Effect::None,
    }
}

fn page<T: Clone>(all: Vec<T>, size: usize, next: Option<&str>) -> Page<T> {
    let from = next.map_or(0, |next| next.parse().unwrap());
    let until = (from + size).min(all.len());
    let next = (until < all.len()).then(|| until.to_string());
    Page { records: all[from..until].to_vec(), next, unreadable: Vec::new() }
}

#[async_trait]
impl Defender for Shelf {
    async fn incident(&self, id: &str) -> Result<Option<DefenderIncident>, Failure> {
        let mut shelves = self.0.lock().unwrap();
        shelves.gets += 1;
        Ok(shelves.defender.get(id).cloned())
    }

    async fn changed_since(
        &self,
        since: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<DefenderIncident>, Failure> {
        let mut shelves = self.0.lock().unwrap();
        shelves.lists[0] += 1;
        if let Some(class) = shelves.trouble.pop() {
            return Err(refusal(Side::Defender, class));
        }
        let all = shelves.defender.values().filter(|incident| incident.updated >= since).cloned().collect();
        Ok(page(all, 50, next))
    }

    async fn created_between(
        &self,
        from: OffsetDateTime,
        to: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<DefenderIncident>, Failure> {
        let mut shelves = self.0.lock().unwrap();
        shelves.lists[0] += 1;
        if let Some(class) = shelves.trouble.pop() {
            return Err(refusal(Side::Defender, class));
        }
        let within = |incident: &&DefenderIncident| incident.created.is_some_and(|at| at >= from && at < to);
        Ok(page(shelves.defender.values().filter(within).cloned().collect(), 50, next))
    }

    async fn update(&self, _id: &str, _patch: &DefenderPatch) -> Result<DefenderIncident, Failure> {
        Err(refusal(Side::Defender, Class::Permanent))
    }

    async fn comment(
        &self,
        _: &str,
        _: &str,
    ) -> Result<Vec<lockstep::domain::model::DefenderComment>, Failure> {
        unreachable!("nobody comments here")
    }

    async fn update_alert(&self, _: &str, _: &lockstep::domain::model::AlertPatch) -> Result<(), Failure> {
        unreachable!("there are no alerts here")
    }
}

#[async_trait]
impl Sentinel for Shelf {
    async fn incident(&self, name: &str) -> Result<Option<SentinelIncident>, Failure> {
        let mut shelves = self.0.lock().unwrap();
        shelves.gets += 1;
        Ok(shelves.sentinel.get(name).cloned())
    }

    async fn changed_since(
        &self,
        _since: OffsetDateTime,
        _next: Option<&str>,
    ) -> Result<Page<SentinelIncident>, Failure> {
        Err(refusal(Side::Sentinel, Class::Permanent))
    }

    async fn everything(&self, next: Option<&str>) -> Result<Page<SentinelIncident>, Failure> {
        let mut shelves = self.0.lock().unwrap();
        shelves.lists[1] += 1;
        Ok(page(shelves.sentinel.values().cloned().collect(), 1_000, next))
    }

    async fn put(&self, _name: &str, _write: &SentinelWrite) -> Result<SentinelIncident, Failure> {
        Err(refusal(Side::Sentinel, Class::Permanent))
    }

    async fn comments(&self, name: &str) -> Result<Vec<SentinelComment>, Failure> {
        let mut shelves = self.0.lock().unwrap();
        shelves.listed.push(name.to_owned());
        Ok(shelves.comments.get(name).cloned().unwrap_or_default())
    }

    async fn put_comment(
        &self,
        _: &str,
        _: &str,
        _: &str,
    ) -> Result<lockstep::domain::model::SentinelComment, Failure> {
        unreachable!("nobody comments here")
    }

    async fn put_bookmark(
        &self,
        _: &str,
        _: &str,
        _: &lockstep::domain::digest::Bookmark,
    ) -> Result<(), Failure> {
        unreachable!("no route here makes bookmarks")
    }
}

pub(crate) struct Stage {
    pub(crate) shelves: Arc<Mutex<Shelves>>,
    pub(crate) disk: Arc<Mutex<Disk>>,
    pub(crate) clock: Arc<VirtualClock>,
}

/// Both sides of an incident that is in step, and its link. Each is a minute older than the one before.
pub(crate) fn at_rest(number: u32, now: OffsetDateTime) -> (DefenderIncident, SentinelIncident, LinkRecord) {
    let id = (1_000 + number).to_string();
    let updated = now - time::Duration::minutes(i64::from(number));
    let defender = DefenderIncident {
        id: id.clone(),
        says: DefenderSays {
            title: Some("Ransom".into()),
            description: Some("text".into()),
            severity: DefenderSeverity::Low,
            status: DefenderStatus::Active,
            owner: None,
            classification: DefenderClassification::Unknown,
            determination: DefenderDetermination::Unknown,
            resolving_comment: None,
            tags: Vec::new(),
            facts: None,
        },
        created: Some(updated),
        updated,
        modified_by: None,
        web_url: None,
        redirect: None,
        comments: Vec::new(),
        alerts: None,
    };
    let sentinel = SentinelIncident {
        name: twin_id(&key(&id)),
        etag: format!("\"{number}\""),
        says: new_twin(&defender, &Policy::default()),
        modified: updated,
        provider: Some("Azure Sentinel".into()),
        provider_incident_id: Some(id.clone()),
        url: None,
        provider_url: None,
        comments_count: None,
    };
    let known = Known {
        defender: defender.says.clone(),
        sentinel: sentinel.says.clone(),
        defender_updated: updated,
        sentinel_modified: updated,
        sentinel_etag: sentinel.etag.clone(),
    };
    let state = LinkState { known: Some(known), ..LinkState::default() };
    let link = LinkRecord {
        key: key(&id),
        route: "main".into(),
        sentinel_id: sentinel.name.clone(),
        state: serde_json::to_string(&state).unwrap(),
        parked: None,
        updated_at: updated,
    };
    (defender, sentinel, link)
}

impl Stage {
    /// So many links, all in step. Their ids are `1000` and on.
    pub(crate) fn with(links: u32) -> Self {
        let clock = Arc::new(VirtualClock::new());
        let (mut shelves, mut disk) = (Shelves::default(), Disk::default());
        for number in 0..links {
            let (defender, sentinel, link) = at_rest(number, clock.now());
            disk.links.insert(link.key.clone(), link);
            shelves.sentinel.insert(sentinel.name.clone(), sentinel);
            shelves.defender.insert(defender.id.clone(), defender);
        }
        Self { shelves: Arc::new(Mutex::new(shelves)), disk: Arc::new(Mutex::new(disk)), clock }
    }

    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::new(Memory { disk: self.disk.clone(), fuse: Arc::new(Fuse::new(i64::MAX)) })
    }

    pub(crate) fn routes(&self, policy: Policy) -> Arc<Routes> {
        let shelf = || Arc::new(Shelf(self.shelves.clone()));
        let route = Route {
            name: "main".into(),
            tenant_id: TENANT.into(),
            workspace: WORKSPACE.into(),
            home: "elsewhere".into(),
            directories: lockstep::app::routes::Directories::default(),
            policy,
            defender: shelf(),
            sentinel: shelf(),
        };
        Arc::new(Routes::new(vec![route]).unwrap())
    }

    fn sweeper(&self) -> Sweeper {
        self.sweeper_of(Policy::default())
    }

    fn sweeper_of(&self, policy: Policy) -> Sweeper {
        Sweeper {
            store: self.store(),
            routes: self.routes(policy),
            clock: self.clock.clone(),
            metrics: Metrics::default(),
            options: SweepOptions::default(),
        }
    }

    /// Sweeps both sides to their ends.
    async fn sweep(&self) {
        self.sweep_of(Policy::default()).await;
    }

    async fn sweep_of(&self, policy: Policy) {
        for mut scope in self.sweeper_of(policy).scopes() {
            while let Swept::Page { .. } | Swept::Comments { .. } = scope.step().await.unwrap() {}
        }
    }

    /// The incidents that wait for a worker.
    pub(crate) fn hinted(&self) -> BTreeSet<String> {
        let disk = self.disk.lock().unwrap();
        let rows = disk.rows.iter().filter(|(_, row)| row.wanted > row.done);
        rows.map(|(subject, _)| {
            assert_eq!(subject.side, Side::Defender);
            subject.native_id.clone()
        })
        .collect()
    }

    pub(crate) fn change(&self, id: &str, change: impl FnOnce(&mut DefenderIncident, &mut SentinelIncident)) {
        let mut shelves = self.shelves.lock().unwrap();
        let Shelves { defender, sentinel, .. } = &mut *shelves;
        change(defender.get_mut(id).unwrap(), sentinel.get_mut(&twin_id(&key(id))).unwrap());
    }

    pub(crate) fn change_link(&self, id: &str, change: impl FnOnce(&mut LinkRecord, &mut LinkState)) {
        let mut disk = self.disk.lock().unwrap();
        let link = disk.links.get_mut(&key(id)).unwrap();
        let mut state = serde_json::from_str(&link.state).unwrap();
        change(link, &mut state);
        link.state = serde_json::to_string(&state).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn links_at_rest_cost_nothing_but_the_pages_of_the_lists() {
    for (links, pages) in [(0, [0, 0]), (1, [1, 1]), (100, [2, 1]), (10_000, [200, 10])] {
        let stage = Stage::with(links);
        stage.sweep().await;
        let shelves = stage.shelves.lock().unwrap();
        assert_eq!((shelves.lists, shelves.gets), (pages, 0), "{links} links");
        drop(shelves);
        assert_eq!(stage.hinted(), BTreeSet::new(), "{links} links");
    }
}

#[tokio::test(start_paused = true)]
async fn what_differs_was_never_agreed_or_is_missing_is_hinted_and_nothing_else() {
    let stage = Stage::with(1_500);
    let second = time::Duration::SECOND;
    stage.change("1001", |defender, _| {
        defender.updated += second;
        defender.says.severity = DefenderSeverity::High;
    });
    stage.change("1002", |_, sentinel| sentinel.etag = "\"other\"".into());
    // Two changes may carry one time.
    stage.change("1003", |defender, _| defender.says.owner = Some("a@example.org".into()));
    // A list that lags proves nothing.
    stage.change("1004", |defender, _| {
        defender.updated -= second;
        defender.says.owner = Some("a@example.org".into());
    });
    stage.change("1005", |_, sentinel| {
        sentinel.modified -= second;
        sentinel.etag = "\"older\"".into();
    });
    {
        let mut shelves = stage.shelves.lock().unwrap();
        shelves.defender.remove("1006");
        shelves.sentinel.remove(&twin_id(&key("1007")));
        shelves.defender.remove("1008");
    }
    stage.change_link("1008", |link, _| link.parked = Some("Gone in defender".into()));
    stage.change_link("1009", |_, state| state.known = None);
    stage.change_link("1010", |_, state| {
        let known = state.known.as_ref().unwrap();
        state.intents.push(Intent {
            side: Side::Sentinel,
            fields: vec![Field::Severity],
            names: Default::default(),
            at: known.sentinel_etag.clone(),
            defender: known.defender.clone(),
            sentinel: known.sentinel.clone(),
        });
    });
    // Put aside for something that may have ended.
    stage.change_link("1011", |link, _| link.parked = Some("refused".into()));
    stage.sweep().await;
    let expected = ["1001", "1002", "1003", "1006", "1007", "1009", "1010", "1011"];
    assert_eq!(stage.hinted(), expected.map(str::to_owned).into());
    assert_eq!(stage.shelves.lock().unwrap().lists, [30, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_breaks_off_goes_on_or_begins_again() {
    let stage = Stage::with(120);
    stage.change("1119", |defender, _| defender.updated += time::Duration::SECOND);
    let of_defender = |sweeper: Sweeper| -> ScopeSweep { sweeper.scopes().remove(0) };
    let mut sweep = of_defender(stage.sweeper());
    assert_eq!(sweep.step().await.unwrap(), Swept::Page { records: 50, hints: 0 });
    // Nobody else sweeps meanwhile.
    assert_eq!(of_defender(stage.sweeper()).step().await.unwrap(), Swept::NotOurs);
    // The side asks us to wait, stumbles, and lets us in again: the list goes on where it was.
    let wait = Duration::from_secs(40);
    stage.shelves.lock().unwrap().trouble =
        vec![Class::Retry { wait: None }, Class::Auth, Class::Retry { wait: Some(wait) }];
    assert_eq!(sweep.step().await.unwrap(), Swept::Waiting(wait));
    assert_eq!(sweep.step().await.unwrap(), Swept::Waiting(Duration::from_secs(60)));
    assert_eq!(sweep.step().await.unwrap(), Swept::Waiting(Duration::from_secs(10)));
    assert_eq!(sweep.step().await.unwrap(), Swept::Page { records: 50, hints: 0 });
    // The process dies. Another takes over when the fence has run out, at the page where it was.
    drop(sweep);
    tokio::time::sleep(Duration::from_secs(16 * 60)).await;
    let mut sweep = of_defender(stage.sweeper());
    assert_eq!(sweep.step().await.unwrap(), Swept::Finished { hints: 1 });
    assert_eq!(stage.hinted(), ["1119".to_owned()].into());
    assert!(matches!(sweep.step().await.unwrap(), Swept::Resting(_)), "until the next is due");
    // A side that answers nothing but trouble is left to the next time, and due then.
    tokio::time::sleep(Duration::from_secs(6 * 60 * 60)).await;
    stage.shelves.lock().unwrap().trouble = vec![Class::Retry { wait: None }; 3];
    assert!(matches!(sweep.step().await.unwrap(), Swept::Waiting(_)));
    assert!(matches!(sweep.step().await.unwrap(), Swept::Waiting(_)));
    assert!(matches!(sweep.step().await.unwrap(), Swept::GivenUp(_)));
    assert!(matches!(sweep.step().await.unwrap(), Swept::Resting(_)));
    tokio::time::sleep(Duration::from_secs(6 * 60 * 60)).await;
    assert_eq!(sweep.step().await.unwrap(), Swept::Page { records: 50, hints: 0 });
    // A place that no longer leads anywhere, and one that is too old: from the start.
    for (rest, trouble) in [(16 * 60, vec![Class::Permanent]), (13 * 60 * 60, Vec::new())] {
        drop(sweep);
        tokio::time::sleep(Duration::from_secs(rest)).await;
        sweep = of_defender(stage.sweeper());
        let broken = !trouble.is_empty();
        stage.shelves.lock().unwrap().trouble = trouble;
        if broken {
            assert_eq!(sweep.step().await.unwrap(), Swept::Waiting(Duration::from_secs(1)));
        }
        assert_eq!(sweep.step().await.unwrap(), Swept::Page { records: 50, hints: 0 });
    }
    // Nothing of the place is left when a sweep has ended.
    while let Swept::Page { .. } = sweep.step().await.unwrap() {}
    assert_eq!(stage.store().values("sweep:place:", None, 9).await.unwrap(), []);
    assert_eq!(stage.store().values("sweep:shown:", None, 9).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_is_interrupted_after_each_page_reads_each_page_once_and_misses_nothing() {
    let stage = Stage::with(2_600);
    stage.change("1003", |defender, _| defender.updated += time::Duration::SECOND);
    stage.change("3500", |_, sentinel| sentinel.etag = "\"other\"".into());
    {
        let mut shelves = stage.shelves.lock().unwrap();
        shelves.defender.remove("1004");
        shelves.defender.remove("3001");
        shelves.sentinel.remove(&twin_id(&key("1006")));
    }
    for at in 0..2 {
        let mut steps = 0;
        loop {
            let mut sweep = stage.sweeper().scopes().remove(at);
            let swept = sweep.step().await.unwrap();
            // Long enough for its fence to run out.
            tokio::time::sleep(Duration::from_secs(16 * 60)).await;
            steps += 1;
            if steps == 7 && at == 0 {
                // A worker made a link meanwhile, whose incident was on an earlier page.
                stage.change_link("1010", |link, state| {
                    link.updated_at = stage.clock.now();
                    state.known.as_mut().unwrap().defender_updated += time::Duration::SECOND;
                });
            }
            match swept {
                Swept::Page { .. } => {}
                Swept::Finished { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(steps, [52, 3][at]);
    }
    assert_eq!(stage.shelves.lock().unwrap().lists, [52, 3]);
    assert_eq!(stage.hinted(), ["1003", "1004", "1006", "3001", "3500"].map(str::to_owned).into());
}

/// A comment of an analyst, at one of its revisions.
fn comment(name: &str, text: &str, now: OffsetDateTime) -> SentinelComment {
    SentinelComment {
        name: name.into(),
        etag: String::new(),
        author: Some("Wendy".into()),
        message: text.into(),
        created: Some(now),
        modified: Some(now),
    }
}

#[tokio::test(start_paused = true)]
async fn comments_that_were_carried_are_looked_at_once_a_sweep_and_no_others() {
    let stage = Stage::with(100);
    let now = stage.clock.now();
    let day = time::Duration::days(1);
    // Those of ten links were carried to Defender.
    for number in 1010..1020 {
        let id = number.to_string();
        let twin = twin_id(&key(&id));
        let said = vec![comment("c", "Looks bad", now)];
        stage.change_link(&id, |link, state| {
            let seen = CommentsSeen {
                link: &link.key,
                twin: &twin,
                defender: &[],
                sentinel: Some(&said),
                sentinel_count: Some(1),
                now: now - day,
                first_meeting: false,
            };
            let planned = comments::plan(&seen, &state.hung.comments, &CommentPolicy::default());
            assert_eq!(planned.posts.len(), 1);
            state.hung.comments = planned.ledger;
            state.hung.comments.landed_post(&planned.posts[0].marker);
        });
        stage.shelves.lock().unwrap().comments.insert(twin, said);
    }
    let closed = |id: &str, days: i32| {
        stage.change_link(id, |_, state| state.closed_since = Some(now - day * days));
    };
    closed("1012", 6);
    closed("1013", 8);
    stage.change_link("1014", |link, _| link.parked = Some("Gone in defender".into()));
    stage.change_link("1015", |_, state| state.unlinked = Some("by policy".into()));
    stage.change_link("1016", |_, state| state.merged_into = Some("1".into()));
    let edit = |id: &str, text: &str| {
        let said = comment("c", text, now + time::Duration::SECOND);
        stage.shelves.lock().unwrap().comments.insert(twin_id(&key(id)), vec![said]);
    };
    for id in ["1010", "1012", "1013", "1016"] {
        edit(id, "Was a test");
    }
    // One that nobody told of either.
    let twin = twin_id(&key("1011"));
    stage.shelves.lock().unwrap().comments.get_mut(&twin).unwrap().push(comment("d", "More", now));

    stage.sweep().await;
    let listed: BTreeSet<String> = stage.shelves.lock().unwrap().listed.drain(..).collect();
    let wanted = ["1010", "1011", "1012", "1017", "1018", "1019"].map(|id| twin_id(&key(id)));
    assert_eq!(listed, wanted.clone().into());
    // 1014 is put aside: Defender's list shows it, so it is tried again whatever its comments say.
    assert_eq!(stage.hinted(), ["1010", "1011", "1012", "1014"].map(str::to_owned).into());
    assert_eq!(stage.shelves.lock().unwrap().lists, [2, 1], "the pages are as few as ever");

    // Who does not want to hear of edits pays for none; nor does who carries none to Defender.
    let mut deaf = Policy::default();
    deaf.comments.edits = false;
    let mut mute = Policy::default();
    mute.comments.to_defender = false;
    for policy in [deaf, mute] {
        tokio::time::sleep(Duration::from_secs(7 * 60 * 60)).await;
        stage.sweep_of(policy).await;
        assert_eq!(stage.shelves.lock().unwrap().listed, [""; 0]);
    }

    // A restart after some of them goes on with the others.
    tokio::time::sleep(Duration::from_secs(7 * 60 * 60)).await;
    let steps = async |most: u32| {
        let mut sweep = stage.sweeper().scopes().remove(1);
        for _ in 0..most {
            if let Swept::Finished { .. } = sweep.step().await.unwrap() {
                return true;
            }
        }
        tokio::time::sleep(Duration::from_secs(16 * 60)).await;
        false
    };
    assert!(!steps(3).await);
    assert!(steps(100).await);
    let shelves = stage.shelves.lock().unwrap();
    assert!(shelves.listed.len() <= wanted.len() + 3, "{:?}", shelves.listed);
    assert_eq!(shelves.lists[1], 4, "the pages are read no second time");
}
