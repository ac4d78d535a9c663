//! `ports::Directory` over Graph's users and groups, with a memory: the same few analysts own every incident.
//!
//! It needs User.Read.All (and GroupMember.Read.All for groups), which not every tenant gives. A refusal here says
//! nothing about incidents: it has a gate and a budget of its own, and the readiness of the side does not hear of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use time::{Duration, OffsetDateTime};
use url::Url;
use uuid::Uuid;

use super::client::GraphSettings;
use crate::adapters::call::{Call, Caller, Missing, Service, Shared};
use crate::adapters::entra::TokenSource;
use crate::adapters::lenient::{self, Unreadable};
use crate::domain::failure::{Class, Failure};
use crate::domain::model::Side;
use crate::domain::owners::{Person, PersonKind};
use crate::ports::{ApiObserver, Clock, Directory};

const FOUND: Duration = Duration::hours(1);
const NOT_FOUND: Duration = Duration::minutes(10);
/// How many names are remembered.
const ROOM: usize = 10_000;

static DIRECTORY: Service = Service {
    side: Side::Defender,
    name: "Graph's directory",
    headers: &[],
    id_header: "client-request-id",
    missing: |code| if code.is_some() { Missing::Incident } else { Missing::Unclear },
    speaks_of_role: |_| false,
    cure: "give the application User.Read.All and GroupMember.Read.All, or set lookup = false",
    not_there: "check graph_url and cloud",
};

type Said = Result<Option<Person>, Failure>;

/// One tenant's users and groups.
pub struct GraphDirectory {
    base: String,
    caller: Caller,
    clock: Arc<dyn Clock>,
    memory: Mutex<Memory>,
    complained: AtomicBool,
}

#[derive(Default)]
struct Memory {
    names: HashMap<String, (OffsetDateTime, Said)>,
    /// The application as such is not let in: nobody else is asked about either.
    refused: Option<(OffsetDateTime, Failure)>,
}

impl GraphDirectory {
    /// Calls nothing yet.
    pub fn new(settings: GraphSettings, tokens: Arc<TokenSource>, shared: Shared) -> Self {
        let GraphSettings { graph_url, scope, tenant_id, alerts: _ } = settings;
        let base = format!("{}/v1.0", graph_url.as_str().trim_end_matches('/'));
        let mut probe = graph_url.clone();
        probe.set_path(&format!("{}/v1.0/users", graph_url.path().trim_end_matches('/')));
        probe.set_query(Some("$select=id&$top=1"));
        // Users are not counted with incidents: the same limits again, in an account of their own.
        let quota = shared.quotas.graph(&format!("directory {tenant_id}"), tokens.client_id());
        let clock = Arc::clone(&shared.clock);
        let shared = Shared { observer: Arc::new(CallsOnly(Arc::clone(&shared.observer))), ..shared };
        let caller = Caller::new(&DIRECTORY, tenant_id, scope, probe, tokens, quota, shared);
        Self { base, caller, clock, memory: Mutex::default(), complained: AtomicBool::new(false) }
    }

    async fn ask(&self, name: &str) -> Said {
        let user =
            self.one("user-get", "users", name, "id,userPrincipalName,mail,displayName", PersonKind::User);
        match user.await? {
            None if Uuid::try_parse(name).is_ok() => {
                self.one("group-get", "groups", name, "id,mail,displayName", PersonKind::Group).await
            }
            user => Ok(user),
        }
    }

    async fn one(
        &self,
        operation: &'static str,
        kind: &str,
        name: &str,
        select: &str,
        person: PersonKind,
    ) -> Said {
        // What no path can hold is nobody's name.
        let Some(segment) = lenient::segment(name) else { return Ok(None) };
        let url = Url::parse(&format!("{}/{kind}/{segment}?$select={select}", self.base))
            .map_err(|error| self.caller.never("bad-url", format!("graph_url makes no URL: {error}")))?;
        let answer = match self.caller.send(Call::read(operation, url)).await {
            Ok(answer) => answer,
            // Graph's word for a name that cannot be one.
            Err(failure) if failure.code == "status-400" => return Ok(None),
            Err(failure) => return Err(failure),
        };
        if answer.status == 404 {
            return Ok(None);
        }
        read(&answer.body, person).map(Some).map_err(|why| self.caller.unreadable(false, &why))
    }

    fn remembered(&self, key: &str, now: OffsetDateTime) -> Option<Said> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((until, said)) = memory.names.get(key)
            && *until > now
        {
            return Some(said.clone());
        }
        let (until, failure) = memory.refused.as_ref()?;
        (*until > now).then(|| Err(failure.clone()))
    }

    fn remember(&self, key: String, said: &Said, now: OffsetDateTime) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let keep = match said {
            Ok(Some(_)) => FOUND,
            Ok(None) => NOT_FOUND,
            Err(failure) if failure.class == Class::Auth => {
                memory.refused = Some((now + NOT_FOUND, failure.clone()));
                return;
            }
            Err(failure) if failure.class == Class::Permanent => NOT_FOUND,
            // The next one may be lucky.
            Err(_) => return,
        };
        if memory.names.len() >= ROOM && !memory.names.contains_key(&key) {
            memory.names.retain(|_, (until, _)| *until > now);
            if memory.names.len() >= ROOM {
                let oldest = memory.names.iter().min_by_key(|(_, (until, _))| *until);
                if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                    memory.names.remove(&oldest);
                }
            }
        }
        memory.names.insert(key, (now + keep, said.clone()));
    }
}

#[async_trait]
impl Directory for GraphDirectory {
    async fn person(&self, name_or_id: &str) -> Result<Option<Person>, Failure> {
        let name = name_or_id.trim();
        let (key, now) = (name.to_lowercase(), self.clock.now());
        if let Some(said) = self.remembered(&key, now) {
            return said;
        }
        let said = self.ask(name).await;
        self.remember(key, &said, now);
        match &said {
            Err(failure) if matches!(failure.class, Class::Auth | Class::Permanent) => {
                if !self.complained.swap(true, Ordering::Relaxed) {
                    tracing::warn!("owners cannot be looked up: {failure}");
                }
            }
            Err(_) => {}
            Ok(_) => self.complained.store(false, Ordering::Relaxed),
        }
        said
    }
}

fn read(body: &[u8], kind: PersonKind) -> Result<Person, Unreadable> {
    let object = lenient::object(&lenient::text_of(body)).map_err(Unreadable::Garbled)?;
    Ok(Person {
        object_id: lenient::text(&object, "id").ok_or_else(|| Unreadable::Lacking("no id".to_owned()))?,
        upn: lenient::text(&object, "userPrincipalName"),
        mail: lenient::text(&object, "mail"),
        display_name: lenient::text(&object, "displayName"),
        kind,
    })
}

/// Counts calls, and keeps the directory's gate and token from being taken for those of the incidents.
struct CallsOnly(Arc<dyn ApiObserver>);

impl ApiObserver for CallsOnly {
    fn called(
        &self,
        side: Side,
        scope: &str,
        operation: &'static str,
        status: Option<u16>,
        took: std::time::Duration,
    ) {
        self.0.called(side, scope, operation, status, took);
    }

    fn gate(&self, _: Side, _: &str, _: Option<(&str, OffsetDateTime)>) {}

    fn token(&self, _: Side, _: &str, _: Result<OffsetDateTime, &str>) {}
}
