//! Both systems in process: the emulator's world, asked through the ports in the real dialect, and everything that may
//! go wrong on the way. What each port call is for the services stands here and nowhere else.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use lockstep::adapters::graph::codec as graph;
use lockstep::adapters::pace::Pace;
use lockstep::adapters::sentinel::codec as arm;
use lockstep::app::reconcile::twin_id;
use lockstep::domain::failure::{Class, Effect, Failure};
use lockstep::domain::model::*;
use lockstep::domain::notice;
use lockstep::emulator::world::budget::Purse;
use lockstep::emulator::world::defender::{Query, Tenant, format_instant, person};
use lockstep::emulator::world::sentinel::{Child, Workspace, playbook_body};
use lockstep::emulator::world::{Answer, Caller, Moment, Person, Refusal, World};
use lockstep::ports::{Clock, Defender, Dice, Hint, Page, Sentinel, Spent, Store, Subject};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::life::{Fuse, VirtualClock};
use crate::sayings::{Heard, Sayings};
use crate::store::{Disk, Memory};
use crate::truth::{Face, Truth, known};

pub(crate) const TENANT: &str = "0c5f8a52-7c5a-4f0e-9d2a-1f1e5b0a7c11";
const GRAPH: &str = "https://graph.test";
/// How long a replica of either service may lag.
const LAG: time::Duration = time::Duration::seconds(10);

/// A workspace of this name, as links and subjects know it.
pub(crate) fn workspace(name: &str) -> String {
    workspace_id("5ub", "rg", name)
}

/// How often things go wrong, in parts of one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// The request never arrives.
    pub(crate) dropped: f64,
    /// It is carried out, and nobody hears of it.
    pub(crate) answer_lost: f64,
    /// It is given up, and carried out some seconds later.
    pub(crate) late: f64,
    /// A read shows what was there before the last change.
    pub(crate) stale: f64,
    /// 429.
    pub(crate) throttled: f64,
    /// 503.
    pub(crate) broken: f64,
    /// A change is missing from the list for some seconds.
    pub(crate) list_lags: f64,
    /// A notification is lost.
    pub(crate) lost: f64,
    /// A notification comes twice.
    pub(crate) doubled: f64,
    /// How late a notification may come, in milliseconds.
    pub(crate) delay: u64,
}

/// Somebody's change, waiting to slip in before the application's next write to that side.
pub(crate) type Slip = Box<dyn FnOnce(&mut Plant, OffsetDateTime) + Send>;

/// What becomes of a write whose sender dies before it hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fatal {
    /// It was carried out.
    Landed,
    /// It is on its way, and arrives when the next application is at work.
    UnderWay,
}

/// Both systems, what happened there, and who saw what.
pub(crate) struct Plant {
    pub(crate) world: World,
    pub(crate) truth: Truth,
    pub(crate) sayings: Sayings,
    pub(crate) faults: Faults,
    pub(crate) slip: HashMap<Side, Slip>,
    /// The next write to that side is its sender's last deed.
    pub(crate) fatal: HashMap<Side, Fatal>,
    /// Until when a side refuses our token.
    pub(crate) barred: HashMap<Side, OffsetDateTime>,
    /// Scopes whose calls take this long.
    pub(crate) slow: HashMap<String, Duration>,
    /// How many calls are still to panic.
    pub(crate) panics: u32,
    /// What Defender's side says of our budget.
    pub(crate) spent: Spent,
    /// Graph's incidents per page, where it is not the usual number.
    pub(crate) page: usize,
    /// Calls that are about one incident, and all others, which are the polls'.
    pub(crate) calls: u64,
    pub(crate) polls: u64,
    pub(crate) writes: u64,
    /// An alert joined between a read and our PATCH, whose answer shows none: it hides behind the version of our own
    /// write, for the sweep to find.
    pub(crate) behind: bool,
    /// Who is told of changes: by subscription, by playbook.
    pub(crate) graph_tells: bool,
    pub(crate) playbooks_tell: bool,
    told: Vec<(OffsetDateTime, String)>,
    disk: Arc<Mutex<Disk>>,
    rng: fastrand::Rng,
    /// When an incident last changed.
    moved: HashMap<(Side, String), OffsetDateTime>,
    /// What each application was last shown of a Defender incident.
    shown: HashMap<(u32, String), DefenderIncident>,
    /// Calls under way, by the twin's name: never two of one link.
    under_way: HashMap<String, u32>,
    /// When each application called Graph, within the last minute.
    minutes: HashMap<(u32, String), Vec<OffsetDateTime>>,
    /// What is to be told.
    hints: Vec<Hint>,
    app: Caller,
}

/// What the applications, the people and the network share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) plant: Arc<Mutex<Plant>>,
    pub(crate) disk: Arc<Mutex<Disk>>,
    pub(crate) clock: Arc<VirtualClock>,
    pub(crate) dice: Arc<Mutex<fastrand::Rng>>,
    /// The running applications' bells.
    pub(crate) wakes: Arc<Mutex<Vec<Weak<Notify>>>>,
}

impl Dice for Shared {
    fn roll(&self) -> f64 {
        self.dice.lock().unwrap().f64()
    }
}

impl Shared {
    pub(crate) fn new(seed: u64, tenants: &[(&str, &str)]) -> Self {
        let disk: Arc<Mutex<Disk>> = Arc::default();
        Self {
            plant: Arc::new(Mutex::new(Plant::new(seed, tenants, disk.clone()))),
            disk,
            clock: Arc::new(VirtualClock::new()),
            dice: Arc::new(Mutex::new(fastrand::Rng::with_seed(seed ^ 0xd1ce))),
            wakes: Arc::default(),
        }
    }

    /// Does something in both systems, and sends out what is told of it.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Plant, OffsetDateTime) -> T) -> T {
        let now = self.clock.now();
        let (answer, out) = {
            let mut plant = self.plant.lock().unwrap();
            let answer = work(&mut plant, now);
            plant.drain(now);
            let hints = std::mem::take(&mut plant.hints);
            let out: Vec<_> = hints.into_iter().flat_map(|hint| plant.fates(hint)).collect();
            (answer, out)
        };
        for (hint, late) in out {
            let this = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(late).await;
                this.remember(hint).await;
            });
        }
        answer
    }

    /// What a door does with a hint.
    pub(crate) async fn remember(&self, hint: Hint) {
        let door = Memory { disk: self.disk.clone(), fuse: Arc::new(Fuse::new(i64::MAX)) };
        door.remember(vec![hint], None, self.clock.now()).await.unwrap();
        let wake = self.wakes.lock().unwrap().iter().filter_map(Weak::upgrade).next();
        if let Some(wake) = wake {
            wake.notify_one();
        }
    }
}

fn options(pairs: &[(&str, String)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

/// The query of a next link, decoded.
fn of_link(next: &str) -> Vec<(String, String)> {
    let url = url::Url::parse(next).expect("the world makes links");
    url.query_pairs().map(|(name, value)| (name.to_lowercase(), value.into_owned())).collect()
}

impl Plant {
    fn new(seed: u64, tenants: &[(&str, &str)], disk: Arc<Mutex<Disk>>) -> Self {
        let mut world = World::default();
        for (tenant, name) in tenants {
            world.tenants.entry((*tenant).to_owned()).or_insert_with(|| Tenant::new(tenant));
            let place = Workspace::new(tenant, "5ub", "rg", name);
            world.workspaces.insert(place.key(), place);
        }
        let app = Caller {
            tenant_id: TENANT.to_owned(),
            app_id: "10c57e9a-0000-4000-8000-000000000001".to_owned(),
            object_id: "10c57e9a-0000-4000-8000-000000000002".to_owned(),
            user: None,
        };
        Self {
            world,
            truth: Truth::default(),
            sayings: Sayings::default(),
            faults: Faults::default(),
            slip: HashMap::new(),
            fatal: HashMap::new(),
            barred: HashMap::new(),
            slow: HashMap::new(),
            panics: 0,
            spent: Spent::default(),
            page: 50,
            calls: 0,
            polls: 0,
            writes: 0,
            behind: false,
            graph_tells: false,
            playbooks_tell: false,
            told: Vec::new(),
            disk,
            rng: fastrand::Rng::with_seed(seed ^ 0x9e7),
            moved: HashMap::new(),
            shown: HashMap::new(),
            under_way: HashMap::new(),
            minutes: HashMap::new(),
            hints: Vec::new(),
            app,
        }
    }

    fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.rng.f64() < p
    }

    pub(crate) fn tell(&mut self, now: OffsetDateTime, what: String) {
        self.told.push((now, what));
    }

    pub(crate) fn story(&self) -> Vec<(OffsetDateTime, String)> {
        self.told.clone()
    }

    /// Whether New and Active are one, because Graph takes no `inProgress`.
    pub(crate) fn one_open(&self) -> bool {
        self.world.switches.is("inProgress", "refused")
    }

    // ---- the services ----------------------------------------------------------------------------------------------

    fn tenant<T>(
        &mut self,
        (caller, scope): (&Caller, &str),
        now: OffsetDateTime,
        ask: impl FnOnce(&mut Tenant, &Moment<'_>) -> T,
    ) -> T {
        let World { tenants, switches, .. } = &mut self.world;
        ask(tenants.get_mut(scope).expect("a known tenant"), &Moment { now, caller, switches })
    }

    fn workspace<T>(
        &mut self,
        (caller, scope): (&Caller, &str),
        now: OffsetDateTime,
        ask: impl FnOnce(&mut Workspace, &Moment<'_>) -> T,
    ) -> T {
        let World { workspaces, switches, .. } = &mut self.world;
        ask(workspaces.get_mut(scope).expect("a known workspace"), &Moment { now, caller, switches })
    }

    fn query(options: Vec<(String, String)>, stale: bool) -> Query {
        Query { options, base: GRAPH.to_owned(), unknown_members: true, stale }
    }

    /// A Defender incident as the application is shown it.
    pub(crate) fn defender(&mut self, scope: &str, id: &str, stale: bool, now: OffsetDateTime) -> Answer {
        let app = self.app.clone();
        self.tenant((&app, scope), now, |tenant, moment| {
            let alerts = options(&[("$expand", "alerts".to_owned())]);
            tenant.get_incident(id, &Self::query(alerts, stale), moment)
        })
    }

    /// A Sentinel incident as the application is shown it.
    pub(crate) fn sentinel(&mut self, scope: &str, name: &str, stale: bool, now: OffsetDateTime) -> Answer {
        let app = self.app.clone();
        self.workspace((&app, scope), now, |place, moment| place.get_incident(name, stale, moment))
    }

    pub(crate) fn defender_now(
        &mut self,
        scope: &str,
        id: &str,
        now: OffsetDateTime,
    ) -> Option<DefenderIncident> {
        let (_, body) = self.defender(scope, id, false, now).ok()?;
        Some(graph::incident(body.to_string().as_bytes()).expect("the world's incidents read"))
    }

    pub(crate) fn sentinel_now(
        &mut self,
        scope: &str,
        name: &str,
        now: OffsetDateTime,
    ) -> Option<SentinelIncident> {
        let (_, body) = self.sentinel(scope, name, false, now).ok()?;
        Some(arm::incident(body.to_string().as_bytes()).expect("the world's incidents read"))
    }

    pub(crate) fn defender_face(&mut self, scope: &str, id: &str, now: OffsetDateTime) -> Option<Face> {
        let one_open = self.one_open();
        self.defender_now(scope, id, now).map(|incident| Face::of_defender(&incident.says, one_open))
    }

    pub(crate) fn sentinel_face(&mut self, scope: &str, name: &str, now: OffsetDateTime) -> Option<Face> {
        let one_open = self.one_open();
        self.sentinel_now(scope, name, now).map(|incident| Face::of_sentinel(&incident.says, one_open))
    }

    /// The ids of a tenant's incidents.
    pub(crate) fn ids(&self, scope: &str) -> Vec<String> {
        let state = self.world.tenants[scope].describe();
        let all = state["incidents"].as_array().into_iter().flatten();
        all.filter_map(|incident| Some(incident["id"].as_str()?.to_owned())).collect()
    }

    /// The names of a workspace's incidents.
    pub(crate) fn names(&self, scope: &str) -> Vec<String> {
        let state = self.world.workspaces[scope].describe();
        let all = state["incidents"].as_array().into_iter().flatten();
        all.filter_map(|incident| Some(incident["name"].as_str()?.to_owned())).collect()
    }

    /// The comments of an incident on both sides.
    pub(crate) fn heard(&self, (tenant, place): (&str, &str), id: &str) -> Heard {
        let (defender, sentinel) =
            (self.world.tenants[tenant].describe(), self.world.workspaces[place].describe());
        let texts = |list: &Value, member: &str| -> Vec<String> {
            let all = list.as_array().into_iter().flatten();
            all.map(|one| member.split('/').fold(one, |value, name| &value[name]))
                .filter_map(|text| Some(text.as_str()?.to_owned()))
                .collect()
        };
        let mut incidents = defender["incidents"].as_array().into_iter().flatten();
        let incident = incidents.find(|incident| incident["id"] == id).unwrap_or(&Value::Null);
        let name = twin_id(&key(tenant, id, place));
        Heard {
            defender: texts(&incident["comments"], "comment"),
            sentinel: texts(&sentinel["comments"][name.as_str()], "properties/message"),
        }
    }

    /// Whether an incident is merged away now.
    pub(crate) fn merged(&self, tenant: &str, id: &str) -> bool {
        let state = self.world.tenants[tenant].describe();
        let mut incidents = state["incidents"].as_array().into_iter().flatten();
        incidents.any(|incident| incident["id"] == id && incident["status"] == "redirected")
    }

    /// The titles of the alerts of an incident.
    pub(crate) fn alert_titles(&self, tenant: &str, id: &str) -> Vec<String> {
        let state = self.world.tenants[tenant].describe();
        let alerts = state["alerts"].as_array().into_iter().flatten();
        let own = alerts.filter(|alert| alert["incidentId"] == id);
        own.filter_map(|alert| Some(alert["title"].as_str()?.to_owned())).collect()
    }

    // ---- people and engines ----------------------------------------------------------------------------------------

    /// Somebody who is not the application does something; whatever it changed is written into the ledger.
    fn somebody(
        &mut self,
        (tenant, place): (&str, &str),
        what: &str,
        now: OffsetDateTime,
        act: impl FnOnce(&mut Self) -> bool,
    ) -> bool {
        let faces = |plant: &mut Self| -> BTreeMap<String, (Option<Face>, Option<Face>)> {
            let ids = plant.ids(tenant);
            let both = |plant: &mut Self, id: &str| {
                let name = twin_id(&key(tenant, id, place));
                (plant.defender_face(tenant, id, now), plant.sentinel_face(place, &name, now))
            };
            ids.into_iter().map(|id| (id.clone(), both(plant, &id))).collect()
        };
        let before = faces(self);
        if !act(self) {
            return false;
        }
        let (mut told, one_open, disk) = (Vec::new(), self.one_open(), self.disk.clone());
        let knows = |id: &str, side| known(&disk.lock().unwrap(), (id, side), one_open);
        for (id, (defender, sentinel)) in faces(self) {
            let Some((d, s)) = before.get(&id) else {
                told.push(format!("{id} is new"));
                continue;
            };
            if let (Some(before), Some(after)) = (d, &defender) {
                let (at, knows) = ((id.as_str(), Side::Defender), knows(&id, Side::Defender));
                let changes = self.truth.edited(at, (before, after), sentinel.as_ref(), &knows, now);
                told.extend(changes.into_iter().map(|change| format!("defender {id} {change}")));
            }
            if let (Some(before), Some(after)) = (s, &sentinel) {
                let (at, knows) = ((id.as_str(), Side::Sentinel), knows(&id, Side::Sentinel));
                let changes = self.truth.edited(at, (before, after), defender.as_ref(), &knows, now);
                told.extend(changes.into_iter().map(|change| format!("sentinel {id} {change}")));
            }
        }
        self.tell(now, format!("* {what}: {}", told.join("; ")));
        true
    }

    /// A person's token.
    fn of_person(tenant: &str, who: &Person) -> Caller {
        Caller {
            tenant_id: tenant.to_owned(),
            app_id: "portal".to_owned(),
            object_id: who.object_id.clone(),
            user: Some(who.clone()),
        }
    }

    /// The correlation engine opens an incident, or puts one back with other words.
    pub(crate) fn engine_puts(&mut self, at: (&str, &str), incident: &Value, now: OffsetDateTime) {
        self.somebody(at, "the engine writes", now, |plant| {
            let tenant = plant.world.tenants.get_mut(at.0).expect("a known tenant");
            let keep_times = incident["lastUpdateDateTime"].is_string();
            tenant.put_incident(incident, keep_times, now).is_ok()
        });
    }

    /// The engine changes some members of an incident that is there.
    pub(crate) fn engine_edits(&mut self, at: (&str, &str), id: &str, members: &Value, now: OffsetDateTime) {
        let Ok((_, mut body)) = self.defender(at.0, id, false, now) else { return };
        let full = body.as_object_mut().expect("an incident");
        full.remove("lastUpdateDateTime");
        full.remove("createdDateTime");
        full.remove("alerts");
        full.extend(members.as_object().expect("members").clone());
        full.insert("lastModifiedBy".into(), json!("Microsoft Defender XDR"));
        self.engine_puts(at, &body, now);
    }

    pub(crate) fn alert_joins(&mut self, at: (&str, &str), id: &str, alert: &Value, now: OffsetDateTime) {
        self.somebody(at, &format!("an alert joins {id}"), now, |plant| {
            let tenant = plant.world.tenants.get_mut(at.0).expect("a known tenant");
            tenant.put_alert(id, alert, false, now).is_ok()
        });
    }

    pub(crate) fn merge(&mut self, at: (&str, &str), from: &str, into: &str, now: OffsetDateTime) -> bool {
        let merged = self.somebody(at, &format!("{from} is merged into {into}"), now, |plant| {
            let app = plant.app.clone();
            plant.tenant((&app, at.0), now, |tenant, moment| tenant.merge(from, into, moment)).is_ok()
        });
        if merged {
            self.sayings.merged(from, into, now);
            let twin = twin_id(&key(at.0, from, at.1));
            let faces = [self.defender_face(at.0, from, now), self.sentinel_face(at.1, &twin, now)];
            self.truth.inherits(into, faces.each_ref().map(Option::as_ref));
        }
        merged
    }

    /// A person takes an incident out of the one that it was merged into.
    pub(crate) fn unmerge(&mut self, at: (&str, &str), id: &str, now: OffsetDateTime) {
        self.somebody(at, &format!("{id} is taken out of its merge"), now, |plant| {
            let tenant = plant.world.tenants.get_mut(at.0).expect("a known tenant");
            tenant.unmerge(id, now).is_ok()
        });
    }

    /// A person edits in the Defender portal. False when it was refused.
    pub(crate) fn person_in_defender(
        &mut self,
        at: (&str, &str),
        (who, id): (&str, &str),
        members: &Value,
        now: OffsetDateTime,
    ) -> bool {
        self.somebody(at, &format!("{who} in Defender"), now, |plant| {
            let caller = Self::of_person(at.0, &person(at.0, who));
            let patch = |tenant: &mut Tenant, moment: &Moment<'_>| {
                tenant.patch_incident(id, members, &Self::query(Vec::new(), false), moment)
            };
            plant.tenant((&caller, at.0), now, patch).is_ok()
        })
    }

    /// A person comments in the Defender portal.
    pub(crate) fn comment_in_defender(
        &mut self,
        at: (&str, &str),
        (who, id, text): (&str, &str, &str),
        now: OffsetDateTime,
    ) -> bool {
        let said = self.somebody(at, &format!("{who} comments on {id} in Defender: {text}"), now, |plant| {
            let caller = Self::of_person(at.0, &person(at.0, who));
            let comment = |tenant: &mut Tenant, moment: &Moment<'_>| {
                let body = json!({"comment": text});
                tenant.comment(false, id, &body, &Self::query(Vec::new(), false), moment)
            };
            plant.tenant((&caller, at.0), now, comment).is_ok()
        });
        if said {
            self.sayings.said(Side::Defender, id, None, text, now);
        }
        said
    }

    /// A person edits in the Azure portal: it reads, changes, and puts everything back. False when it was refused.
    pub(crate) fn person_in_sentinel(
        &mut self,
        at: (&str, &str),
        (who, id): (&str, &str),
        edit: impl FnOnce(&mut Map<String, Value>),
        now: OffsetDateTime,
    ) -> bool {
        let name = twin_id(&key(at.0, id, at.1));
        self.somebody(at, &format!("{who} in Sentinel"), now, |plant| {
            let caller = Self::of_person(at.0, &person(at.0, who));
            let Ok((_, mut body)) = plant.sentinel(at.1, &name, false, now) else { return false };
            edit(body["properties"].as_object_mut().expect("properties"));
            plant
                .workspace((&caller, at.1), now, |place, moment| place.put_incident(&name, &body, moment))
                .is_ok()
        })
    }

    /// A person comments in the Azure portal, or edits what it wrote under that id.
    pub(crate) fn comment_in_sentinel(
        &mut self,
        at: (&str, &str),
        (who, id): (&str, &str),
        (comment, text): (&str, &str),
        now: OffsetDateTime,
    ) -> bool {
        let name = twin_id(&key(at.0, id, at.1));
        let said = self.somebody(at, &format!("{who} comments on {id} in Sentinel: {text}"), now, |plant| {
            let caller = Self::of_person(at.0, &person(at.0, who));
            let put = |place: &mut Workspace, moment: &Moment<'_>| {
                let body = json!({"properties": {"message": text}});
                place.put_child(&name, Child::Comment, comment, &body, moment)
            };
            plant.workspace((&caller, at.1), now, put).is_ok()
        });
        if said {
            self.sayings.said(Side::Sentinel, id, Some(comment), text, now);
        }
        said
    }

    // ---- what is told of it ----------------------------------------------------------------------------------------

    /// Subscribes the application to a tenant's incidents, as some national clouds may one day allow.
    pub(crate) fn subscribe(&mut self, scope: &str, now: OffsetDateTime) {
        self.world.switches.set("graphIncidentSubscriptions", "on").unwrap();
        self.graph_tells = true;
        let app = self.app.clone();
        let order = json!({
            "changeType": "created,updated", "resource": "security/incidents", "clientState": "s",
            "notificationUrl": "https://lockstep.test/graph",
            "expirationDateTime": format_instant(now + time::Duration::days(29)),
        });
        self.tenant((&app, scope), now, |tenant, moment| {
            let subscription = tenant.check_subscription(&order, moment).expect("it is in order");
            tenant.keep_subscription(subscription);
        });
    }

    /// Takes note of what changed, and makes notifications of it, which are read as the doors read them.
    fn drain(&mut self, now: OffsetDateTime) {
        self.world.settle_native(now);
        let (graph_tells, playbooks_tell) = (self.graph_tells, self.playbooks_tell);
        let World { tenants, workspaces, .. } = &mut self.world;
        for (scope, tenant) in tenants {
            for touched in std::mem::take(&mut tenant.touched) {
                self.moved.insert((Side::Defender, touched.incident.clone()), now);
                if !graph_tells {
                    continue;
                }
                for (_, body) in tenant.notifications(&touched, now) {
                    let items = notice::graph(body.to_string().as_bytes()).expect("a notification reads");
                    for item in items.items {
                        let notice::About::Incident(native_id) = item.about else { continue };
                        let subject = Subject { side: Side::Defender, scope: scope.clone(), native_id };
                        self.hints.push(Hint { subject, version: None, source: "graph-notification".into() });
                    }
                }
            }
        }
        for (scope, place) in workspaces {
            for touched in std::mem::take(&mut place.touched) {
                let name = touched.incident["name"].as_str().unwrap_or_default().to_owned();
                self.moved.insert((Side::Sentinel, name), now);
                if !playbooks_tell {
                    continue;
                }
                let body = playbook_body(place, &touched, &Uuid::nil()).to_string();
                let read = notice::playbook(body.as_bytes()).expect("a playbook's body reads");
                let Some(native_id) = read.incident else { continue };
                let subject = Subject { side: Side::Sentinel, scope: scope.clone(), native_id };
                self.hints.push(Hint { subject, version: read.version, source: "playbook".into() });
            }
        }
    }

    /// When a notification arrives: never, once or twice; late, and so out of order.
    fn fates(&mut self, hint: Hint) -> Vec<(Hint, Duration)> {
        let Faults { lost, doubled, delay, .. } = self.faults;
        let copies = if self.chance(lost) { 0 } else { 1 + usize::from(self.chance(doubled)) };
        (0..copies).map(|_| (hint.clone(), Duration::from_millis(20 + self.rng.u64(0..=delay)))).collect()
    }

    fn lags(&mut self, side: Side, id: &str, p: f64, now: OffsetDateTime) -> bool {
        let fresh = self.moved.get(&(side, id.to_owned())).is_some_and(|moved| now - *moved < LAG);
        fresh && self.chance(p)
    }
}

/// The link of an incident.
pub(crate) fn key(tenant: &str, id: &str, place: &str) -> LinkKey {
    LinkKey { tenant_id: tenant.to_owned(), incident_id: id.to_owned(), workspace: place.to_owned() }
}

/// One side as one application sees it.
pub(crate) struct Plug {
    pub(crate) shared: Shared,
    pub(crate) fuse: Arc<Fuse>,
    pub(crate) pace: Arc<Pace>,
    /// Which application this is.
    pub(crate) app: u32,
    pub(crate) side: Side,
    pub(crate) scope: String,
    /// The place at the other end of the route.
    pub(crate) other: String,
}

/// A call under way.
struct UnderWay {
    plant: Arc<Mutex<Plant>>,
    name: String,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Ok(mut plant) = self.plant.lock()
            && let Some(count) = plant.under_way.get_mut(&self.name)
        {
            *count -= 1;
        }
    }
}

/// What becomes of a request.
enum Fate {
    Through,
    Barred,
    Dropped,
    Throttled(Duration),
    Broken,
    Panics,
}

impl Plug {
    fn failure(&self, class: Class, code: &str, message: String, effect: Effect) -> Failure {
        Failure { class, side: Some(self.side), code: code.to_owned(), message, effect }
    }

    fn timeout(&self) -> Failure {
        self.failure(Class::Retry { wait: None }, "timeout", "no answer in time".into(), Effect::Unknown)
    }

    fn throttled(&self, wait: Duration) -> Failure {
        let class = Class::Retry { wait: Some(wait) };
        self.failure(class, "throttled", "429".into(), Effect::None)
    }

    /// A refusal, in the words of `adapters::call`.
    fn refused(&self, refusal: &Refusal, write: bool) -> Failure {
        let Refusal { status, code, message } = refusal;
        let message = format!("answered {status}, {code}: {message}");
        let wait = Some(Duration::from_secs(2));
        match status {
            401 | 403 => self.failure(Class::Auth, "refused", message, Effect::None),
            429 | 503 => self.failure(Class::Retry { wait }, "throttled", message, Effect::None),
            status => {
                let unknown = write && (*status == 408 || (*status >= 500 && *status != 501));
                let effect = if unknown { Effect::Unknown } else { Effect::None };
                self.failure(Class::of_status(*status, None), &format!("status-{status}"), message, effect)
            }
        }
    }

    fn unreadable<T>(&self, read: Result<T, String>) -> Result<T, Failure> {
        read.map_err(|why| {
            self.shared
                .plant
                .lock()
                .unwrap()
                .truth
                .violations
                .push(format!("an answer does not read: {why}"));
            self.failure(Class::Permanent, "unreadable", why, Effect::None)
        })
    }

    /// Counts the call, and the ones beside it on the same link.
    fn begin(&self, id: &str) -> UnderWay {
        let name = match self.side {
            Side::Defender => twin_id(&key(&self.scope, id, &self.other)),
            Side::Sentinel => id.to_owned(),
        };
        let mut plant = self.shared.plant.lock().unwrap();
        let count = plant.under_way.entry(name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            plant
                .truth
                .violations
                .push(format!("two workers are on {name} at once, one of application {}", self.app));
        }
        UnderWay { plant: self.shared.plant.clone(), name }
    }

    /// What every call goes through before it reaches the service.
    async fn arrive(&self, write: bool, poll: bool) -> Result<(), Failure> {
        self.fuse.pass().await;
        self.pace.take(write, poll).await.map_err(|wait| {
            let message = "our own budget is spent for now".to_owned();
            self.failure(Class::Retry { wait: Some(wait) }, "budget", message, Effect::None)
        })?;
        let (latency, fate) = self.shared.with(|plant, now| plant.road(self, (write, poll), now));
        tokio::time::sleep(latency).await;
        match fate {
            Fate::Through => Ok(()),
            Fate::Barred => {
                Err(self.failure(Class::Auth, "refused", "the role is missing".into(), Effect::None))
            }
            Fate::Dropped => Err(self.timeout()),
            Fate::Throttled(wait) => Err(self.throttled(wait)),
            Fate::Broken => {
                let class = Class::Retry { wait: None };
                Err(self.failure(class, "status-500", "answered 500".into(), Effect::Unknown))
            }
            Fate::Panics => panic!("planted"),
        }
    }

    /// The answer's way back.
    async fn answer<T>(&self, answer: Result<T, Failure>) -> Result<T, Failure> {
        self.fuse.pass().await;
        let lost = self.shared.with(|plant, _| {
            let p = plant.faults.answer_lost;
            plant.chance(p)
        });
        if lost { Err(self.timeout()) } else { answer }
    }

    /// A write: mostly now, sometimes after its sender has given it up, and sometimes that is dead by then.
    async fn write<T: Send + 'static>(
        &self,
        land: impl FnOnce(&mut Plant, OffsetDateTime, bool) -> T + Send + 'static,
    ) -> Option<T> {
        let (fatal, late) = self.shared.with(|plant, now| {
            if let Some(slip) = plant.slip.remove(&self.side) {
                slip(plant, now);
            }
            let fatal = plant.fatal.remove(&self.side);
            let p = if fatal == Some(Fatal::UnderWay) { 1.0 } else { plant.faults.late };
            (fatal, plant.chance(p).then(|| Duration::from_millis(500 + plant.rng.u64(0..12_000))))
        });
        let landed = match late {
            None => Some(self.shared.with(|plant, now| land(plant, now, false))),
            Some(late) => {
                let shared = self.shared.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(late).await;
                    shared.with(|plant, now| {
                        plant.tell(now, "  a request arrives that was given up:".into());
                        land(plant, now, true);
                    });
                });
                None
            }
        };
        if fatal.is_some() {
            self.shared.with(|plant, now| plant.tell(now, format!("! application {} dies of it", self.app)));
            self.fuse.blow().await;
        }
        if late.is_some() {
            // Its sender waits as long as it usually does.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        landed
    }
}

impl Plant {
    /// What becomes of a call on its way, and how long the way is.
    fn road(&mut self, plug: &Plug, (write, poll): (bool, bool), now: OffsetDateTime) -> (Duration, Fate) {
        if poll {
            self.polls += 1;
        } else {
            self.calls += 1;
        }
        let latency = Duration::from_millis(10 + self.rng.u64(0..90));
        let latency = self.slow.get(&plug.scope).copied().unwrap_or(latency);
        if plug.side == Side::Defender {
            let minute = self.minutes.entry((plug.app, plug.scope.clone())).or_default();
            minute.retain(|at| now - *at < time::Duration::MINUTE);
            minute.push(now);
            if minute.len() > 50 {
                self.truth.violations.push(format!("{} calls to Graph within a minute", minute.len()));
            }
        }
        if self.panics > 0 {
            self.panics -= 1;
            return (latency, Fate::Panics);
        }
        let Faults { dropped, throttled, broken, .. } = self.faults;
        if self.barred.get(&plug.side).is_some_and(|until| *until > now) {
            return (latency, Fate::Barred);
        }
        let purse = match (plug.side, write) {
            (Side::Defender, _) => Purse::GraphIncidents,
            (Side::Sentinel, false) => Purse::ArmReads,
            (Side::Sentinel, true) => Purse::ArmWrites,
        };
        let who = format!("{:?} {}", plug.side, plug.scope);
        if self.chance(dropped) {
            return (latency, Fate::Dropped);
        }
        if self.world.switches.is("budgets", "on")
            && let Err(seconds) = self.world.budgets.take(&who, purse, now)
        {
            self.tell(now, format!("  {who} is throttled"));
            return (latency, Fate::Throttled(Duration::from_secs_f64(seconds)));
        }
        if self.chance(throttled) {
            return (latency, Fate::Throttled(Duration::from_secs(2)));
        }
        if self.chance(broken) {
            return (latency, Fate::Broken);
        }
        (latency, Fate::Through)
    }
}

impl Plug {
    /// Asks: the way there, what the service says, the way back. `None` is a 404.
    ///
    /// A read is no work on the link: the winner's job reads the loser.
    async fn ask<T>(
        &self,
        poll: bool,
        ask: impl FnOnce(&mut Plant, OffsetDateTime) -> Result<Result<T, String>, Refusal>,
    ) -> Result<Option<T>, Failure> {
        self.arrive(false, poll).await?;
        let answer = match self.shared.with(ask) {
            Ok(read) => Ok(Some(self.unreadable(read)?)),
            Err(refusal) if refusal.status == 404 => Ok(None),
            Err(refusal) => Err(self.refused(&refusal, false)),
        };
        self.answer(answer).await
    }

    /// Asks for a page of a list, with what lags left out.
    async fn page<T>(
        &self,
        id: &'static str,
        list: impl FnOnce(&mut Plant, OffsetDateTime) -> Answer,
        read: impl FnOnce(&[u8]) -> Result<Page<T>, String>,
    ) -> Result<Page<T>, Failure> {
        let page = self.ask(true, |plant, now| {
            let (_, mut page) = list(plant, now)?;
            plant.hide(self.side, &mut page, id, now);
            Ok(read(page.to_string().as_bytes()))
        });
        Ok(page.await?.expect("the place is there"))
    }

    /// Sends: the way there, what the service makes of it, the way back.
    async fn send<T>(
        &self,
        id: &str,
        land: impl FnOnce(&mut Plant, OffsetDateTime, bool) -> Answer + Send + 'static,
        read: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, Failure> {
        let _call = self.begin(id);
        self.arrive(true, false).await?;
        let answer = match self.write(land).await {
            None => return Err(self.timeout()),
            Some(Ok((_, body))) => Ok(self.unreadable(read(body.to_string().as_bytes()))?),
            Some(Err(refusal)) => Err(self.refused(&refusal, true)),
        };
        self.answer(answer).await
    }

    /// The tenant and the workspace.
    fn places(&self) -> (String, String) {
        match self.side {
            Side::Defender => (self.scope.clone(), self.other.clone()),
            Side::Sentinel => (self.other.clone(), self.scope.clone()),
        }
    }
}

impl Plant {
    /// A write of the application takes effect. What it changed is held against what people did.
    fn land(
        &mut self,
        (tenant, place, id, side): (&str, &str, &str, Side),
        seen: Option<&Face>,
        (now, late): (OffsetDateTime, bool),
        act: impl FnOnce(&mut Self) -> Answer,
    ) -> Answer {
        let name = twin_id(&key(tenant, id, place));
        let faces = |plant: &mut Self| {
            let (d, s) = (plant.defender_face(tenant, id, now), plant.sentinel_face(place, &name, now));
            if side == Side::Defender { (d, s) } else { (s, d) }
        };
        let before = faces(self).0;
        let answer = act(self);
        let outcome = match (&answer, faces(self)) {
            (Ok(_), (Some(after), other)) => {
                self.writes += 1;
                let (disk, one_open) = (self.disk.clone(), self.one_open());
                let change = (before.as_ref().unwrap_or(&after), &after);
                let disk = disk.lock().unwrap();
                let told =
                    self.truth.wrote((id, side), change, other.as_ref(), seen, &disk, (late, one_open, now));
                told.join("; ")
            }
            (Err(refusal), _) => refusal.message.clone(),
            (Ok(_), (None, _)) => String::new(),
        };
        self.tell(now, format!("  write {side} {id}: {outcome}"));
        answer
    }

    /// A comment of the application arrives.
    fn noted(&mut self, now: OffsetDateTime, what: &str, body: &Value, answer: Answer) -> Answer {
        self.writes += u64::from(answer.is_ok());
        let outcome = answer.as_ref().map_or_else(|refusal| refusal.message.clone(), |_| String::new());
        self.tell(now, format!("  {what} {body}: {outcome}"));
        answer
    }

    /// Takes out of a page what a lagging list does not show yet.
    fn hide(&mut self, side: Side, page: &mut Value, id: &str, now: OffsetDateTime) {
        let p = self.faults.list_lags;
        if let Some(list) = page["value"].as_array_mut() {
            list.retain(|record| !self.lags(side, record[id].as_str().unwrap_or_default(), p, now));
        }
    }
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("we send JSON")
}

fn bare_query() -> Query {
    Plant::query(Vec::new(), false)
}

#[async_trait]
impl Defender for Plug {
    async fn incident(&self, id: &str) -> Result<Option<DefenderIncident>, Failure> {
        self.ask(false, |plant, now| {
            let p = plant.faults.stale;
            let stale = plant.lags(self.side, id, p, now);
            let (_, body) = plant.defender(&self.scope, id, stale, now)?;
            let read = graph::incident(body.to_string().as_bytes());
            if let Ok(incident) = &read {
                plant.shown.insert((self.app, id.to_owned()), incident.clone());
                let (says, lags) = (brief_defender(&incident.says), if stale { " (lags)" } else { "" });
                plant.tell(now, format!("  GET defender {id} ({}): {says}{lags}", self.app));
            }
            Ok(read)
        })
        .await
    }

    async fn changed_since(
        &self,
        since: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<DefenderIncident>, Failure> {
        let list = |plant: &mut Plant, now| {
            let options = match next {
                Some(next) => of_link(next),
                None => {
                    let filter = format!("lastUpdateDateTime ge {}", format_instant(since));
                    options(&[("$filter", filter), ("$top", plant.page.to_string())])
                }
            };
            let app = plant.app.clone();
            plant.tenant((&app, &self.scope), now, |tenant, moment| {
                tenant.list_incidents(&Plant::query(options, false), moment)
            })
        };
        self.page("id", list, graph::page).await
    }

    async fn update(&self, id: &str, patch: &DefenderPatch) -> Result<DefenderIncident, Failure> {
        let ((tenant, place), of, app) = (self.places(), id.to_owned(), self.app);
        let body = json(&graph::patch(patch));
        let land = move |plant: &mut Plant, now, late| {
            let one_open = plant.one_open();
            let shown = plant.shown.get(&(app, of.clone())).cloned();
            let alerts =
                |incident: Option<&DefenderIncident>| incident.map(|i| i.alerts.as_ref().map(Vec::len));
            let there = plant.defender_now(&tenant, &of, now);
            plant.behind |= alerts(shown.as_ref()) != alerts(there.as_ref());
            let seen = shown.map(|shown| Face::of_defender(&shown.says, one_open));
            plant.land((&tenant, &place, &of, Side::Defender), seen.as_ref(), (now, late), |plant| {
                let app = plant.app.clone();
                plant.tenant((&app, &tenant), now, |tenant, moment| {
                    tenant.patch_incident(&of, &body, &bare_query(), moment)
                })
            })
        };
        self.send(id, land, graph::incident).await
    }

    async fn comment(&self, id: &str, text: &str) -> Result<Vec<DefenderComment>, Failure> {
        let (scope, of, body) = (self.scope.clone(), id.to_owned(), json(&graph::new_comment(text)));
        let land = move |plant: &mut Plant, now, _| {
            let app = plant.app.clone();
            let answer = plant.tenant((&app, &scope), now, |tenant, moment| {
                tenant.comment(false, &of, &body, &bare_query(), moment)
            });
            plant.noted(now, &format!("POST comment defender {of}"), &body, answer)
        };
        self.send(id, land, graph::commented).await
    }

    async fn update_alert(&self, _: &str, _: &AlertPatch) -> Result<(), Failure> {
        unreachable!("no route here lets alerts follow")
    }

    fn spent(&self) -> Spent {
        self.shared.plant.lock().unwrap().spent
    }
}

#[async_trait]
impl Sentinel for Plug {
    async fn incident(&self, name: &str) -> Result<Option<SentinelIncident>, Failure> {
        self.ask(false, |plant, now| {
            let p = plant.faults.stale;
            let stale = plant.lags(self.side, name, p, now);
            let (_, body) = plant.sentinel(&self.scope, name, stale, now)?;
            let read = arm::incident(body.to_string().as_bytes());
            if let Ok(incident) = &read {
                let (says, lags) = (brief_sentinel(&incident.says), if stale { " (lags)" } else { "" });
                plant.tell(now, format!("  GET sentinel {} ({}): {says}{lags}", &name[..8], self.app));
            }
            Ok(read)
        })
        .await
    }

    async fn changed_since(
        &self,
        since: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<SentinelIncident>, Failure> {
        let list = |plant: &mut Plant, now| {
            let options = match next {
                Some(next) => of_link(next),
                None => options(&[
                    ("$filter", format!("properties/lastModifiedTimeUtc ge {}", format_instant(since))),
                    ("$orderby", "properties/lastModifiedTimeUtc asc".to_owned()),
                    ("$top", "200".to_owned()),
                ]),
            };
            let app = plant.app.clone();
            let link = |token: &str| format!("https://arm.test/incidents?$skipToken={token}");
            plant.workspace((&app, &self.scope), now, |place, moment| {
                place.list_incidents(&options, false, &link, moment)
            })
        };
        self.page("name", list, arm::page).await
    }

    async fn put(&self, name: &str, write: &SentinelWrite) -> Result<SentinelIncident, Failure> {
        let ((tenant, place), of, body) = (self.places(), name.to_owned(), json(&arm::put(write)));
        let land = move |plant: &mut Plant, now, late| {
            let link = plant.disk.lock().unwrap().links.values().find(|link| link.sentinel_id == of).cloned();
            let id = link.map(|link| link.key.incident_id).unwrap_or_default();
            // An update goes under the etag of its read, however late it comes. A create has none.
            let late = late && body["etag"].is_null();
            plant.land((&tenant, &place, &id, Side::Sentinel), None, (now, late), |plant| {
                let app = plant.app.clone();
                let put = |place: &mut Workspace, moment: &Moment<'_>| place.put_incident(&of, &body, moment);
                plant.workspace((&app, &place), now, put)
            })
        };
        self.send(name, land, arm::incident).await
    }

    async fn comments(&self, name: &str) -> Result<Vec<SentinelComment>, Failure> {
        let list = self.ask(false, |plant, now| {
            let app = plant.app.clone();
            let link = |token: &str| format!("https://arm.test/comments?$skipToken={token}");
            let (_, body) = plant.workspace((&app, &self.scope), now, |place, moment| {
                place.list_children(name, Child::Comment, &options(&[("$top", "100".into())]), &link, moment)
            })?;
            Ok(arm::comments(body.to_string().as_bytes()).map(|(list, _)| list))
        });
        Ok(list.await?.unwrap_or_default())
    }

    async fn put_comment(&self, name: &str, id: &str, message: &str) -> Result<SentinelComment, Failure> {
        let (scope, of, id) = (self.scope.clone(), name.to_owned(), id.to_owned());
        let body = json(&arm::put_comment(message));
        let land = move |plant: &mut Plant, now, _| {
            let app = plant.app.clone();
            let answer = plant.workspace((&app, &scope), now, |place, moment| {
                place.put_child(&of, Child::Comment, &id, &body, moment)
            });
            plant.noted(now, &format!("PUT comment sentinel {of} {id}"), &body, answer)
        };
        self.send(name, land, arm::comment).await
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

fn brief_defender(says: &DefenderSays) -> String {
    let DefenderSays { severity, status, owner, classification, determination, tags, .. } = says;
    format!("{severity} {status} {owner:?} {classification}/{determination} {tags:?}")
}

fn brief_sentinel(says: &SentinelSays) -> String {
    let labels: Vec<&str> = says.labels.iter().map(|label| label.name.as_str()).collect();
    let SentinelSays { severity, status, owner, classification, reason, .. } = says;
    let (classification, reason) =
        (classification.as_ref().map_or("", |c| c.as_str()), reason.as_ref().map_or("", |r| r.as_str()));
    format!("{severity} {status} {:?} {classification}/{reason} {labels:?}", owner.upn)
}
