//! Small worlds: two sides with short lists of values, versions that move on every write, and the carrying out of a
//! plan with an optional crash.

use lockstep::domain::model::*;
use lockstep::domain::plan::{self, Landed, LinkState, Outcome, Plan, Snapshot};
use lockstep::domain::policy::Policy;
use time::{Duration, OffsetDateTime};

pub(crate) fn key() -> LinkKey {
    LinkKey { tenant_id: "t".into(), incident_id: "29".into(), workspace: "/subscriptions/s".into() }
}

pub(crate) fn epoch() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::days(20_000)
}

pub(crate) fn defender_says() -> DefenderSays {
    DefenderSays {
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
    }
}

pub(crate) fn sentinel_says() -> SentinelSays {
    SentinelSays {
        title: "Ransom".into(),
        description: Some("text".into()),
        severity: SentinelSeverity::Low,
        status: SentinelStatus::New,
        owner: SentinelOwner::default(),
        classification: None,
        reason: None,
        comment: None,
        labels: Vec::new(),
        first_activity: None,
        last_activity: None,
    }
}

/// Both systems, as if behind their APIs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct World {
    pub(crate) defender: DefenderIncident,
    pub(crate) sentinel: Option<SentinelIncident>,
    pub(crate) state: LinkState,
    pub(crate) ticks: i64,
}

impl World {
    pub(crate) fn new(defender: DefenderSays, sentinel: Option<SentinelSays>) -> Self {
        let mut world = World {
            defender: DefenderIncident {
                id: "29".into(),
                says: defender,
                created: Some(epoch()),
                updated: epoch(),
                modified_by: None,
                web_url: Some("https://security.microsoft.com/incident2/29/overview?tid=t".into()),
                redirect: None,
                comments: Vec::new(),
                alerts: None,
            },
            sentinel: None,
            state: LinkState::default(),
            ticks: 0,
        };
        if let Some(says) = sentinel {
            world.put(says);
        }
        world
    }

    /// A minute passes with each change, so that `latest` can tell who was later.
    fn tick(&mut self) -> OffsetDateTime {
        self.ticks += 1;
        epoch() + Duration::minutes(self.ticks)
    }

    pub(crate) fn edit_defender(&mut self, says: DefenderSays) {
        if self.defender.says != says {
            self.defender.updated = self.tick();
            self.defender.says = says;
        }
    }

    pub(crate) fn put(&mut self, says: SentinelSays) {
        if self.sentinel.as_ref().is_some_and(|incident| incident.says == says) {
            return;
        }
        let modified = self.tick();
        self.sentinel = Some(SentinelIncident {
            name: "twin".into(),
            etag: format!("e{}", self.ticks),
            says,
            modified,
            provider: Some("Azure Sentinel".into()),
            provider_incident_id: Some("1".into()),
            url: None,
            provider_url: None,
            comments_count: None,
        });
    }

    pub(crate) fn seen(&self) -> Snapshot {
        Snapshot {
            key: key(),
            state: self.state.clone(),
            defender: Some(self.defender.clone()),
            sentinel: self.sentinel.clone(),
        }
    }

    pub(crate) fn plan(&self, policy: &Policy) -> Plan {
        plan::plan(&self.seen(), policy)
    }

    /// Carries a plan out; stops dead after `crash_after` steps (announce, Sentinel, Defender, agree).
    pub(crate) fn carry_out(&mut self, plan: &Plan, crash_after: usize) {
        let seen = self.seen();
        let mut landed = Landed::default();
        for step in 0..crash_after.min(4) {
            match step {
                0 => self.state = plan::announce(&seen, plan),
                1 if plan.defender_first => self.write_defender(plan, &mut landed),
                1 => self.write_sentinel(plan, &mut landed),
                2 if plan.defender_first => self.write_sentinel(plan, &mut landed),
                2 => self.write_defender(plan, &mut landed),
                _ => {
                    if matches!(plan.outcome, Outcome::Both | Outcome::Create) {
                        let (state, again) = plan::agree(&seen, plan, &landed).expect("all writes landed");
                        assert!(!again, "nobody else wrote");
                        self.state = state;
                    }
                }
            }
        }
    }

    /// Carries a plan out while somebody edits Defender between our read and our PATCH, which Graph cannot refuse.
    /// Says whether the answers showed it.
    pub(crate) fn carry_out_raced(&mut self, plan: &Plan, edit: DefenderSays) -> bool {
        let seen = self.seen();
        self.state = plan::announce(&seen, plan);
        let mut landed = Landed::default();
        self.write_sentinel(plan, &mut landed);
        self.edit_defender(edit);
        self.write_defender(plan, &mut landed);
        let (state, again) = plan::agree(&seen, plan, &landed).expect("all writes landed");
        self.state = state;
        again
    }

    fn write_sentinel(&mut self, plan: &Plan, landed: &mut Landed) {
        if let Some(write) = &plan.sentinel {
            let now = self.sentinel.as_ref().map(|incident| incident.etag.clone());
            assert_eq!(write.etag, now, "a write that was not computed from this read");
            // The service bumps the version even when nothing changes.
            self.sentinel = None;
            self.put(write.says.clone());
            landed.sentinel = self.sentinel.clone();
        }
    }

    fn write_defender(&mut self, plan: &Plan, landed: &mut Landed) {
        if let Some(patch) = &plan.defender {
            self.apply(patch);
            landed.defender = Some(self.defender.clone());
        }
    }

    fn apply(&mut self, patch: &DefenderPatch) {
        let DefenderPatch { title, description, severity, status, owner, verdict, resolving_comment, tags } =
            patch.clone();
        let mut says = self.defender.says.clone();
        if let Some(title) = title {
            says.title = Some(title);
        }
        if let Some(description) = description {
            says.description = description;
        }
        if let Some(severity) = severity {
            says.severity = severity;
        }
        if let Some(status) = status {
            says.status = status;
        }
        if let Some(owner) = owner {
            says.owner = owner;
        }
        if let Some((classification, determination)) = verdict {
            says.classification = classification;
            says.determination = determination;
        }
        if let Some(comment) = resolving_comment {
            says.resolving_comment = comment;
        }
        if let Some(tags) = tags {
            says.tags = tags;
        }
        self.defender.updated = self.tick();
        self.defender.says = says;
    }

    /// Plans and carries out until nothing is written; at most three times, or the planner argues with itself.
    pub(crate) fn settle(&mut self, policy: &Policy) -> usize {
        for round in 0..3 {
            let plan = self.plan(policy);
            let writes = !plan.is_empty();
            self.carry_out(&plan, 4);
            if !writes {
                return round;
            }
        }
        panic!("still writing after three rounds: {}", self.plan(policy));
    }
}

/// Every Defender state in the group of fields that hang together: status, verdict and its comment.
pub(crate) fn defender_cases() -> Vec<DefenderSays> {
    let mut cases = Vec::new();
    for status in [DefenderStatus::Active, DefenderStatus::InProgress, DefenderStatus::Resolved] {
        for (classification, determination) in [
            (DefenderClassification::Unknown, DefenderDetermination::Unknown),
            (DefenderClassification::TruePositive, DefenderDetermination::Phishing),
            (DefenderClassification::FalsePositive, DefenderDetermination::NotMalicious),
        ] {
            for comment in [None, Some("because".to_owned())] {
                cases.push(DefenderSays {
                    status: status.clone(),
                    classification: classification.clone(),
                    determination: determination.clone(),
                    resolving_comment: comment,
                    ..defender_says()
                });
            }
        }
    }
    cases
}

/// Every Sentinel state in the same group.
pub(crate) fn sentinel_cases() -> Vec<SentinelSays> {
    let mut cases = vec![
        SentinelSays { status: SentinelStatus::New, ..sentinel_says() },
        SentinelSays { status: SentinelStatus::Active, ..sentinel_says() },
    ];
    for (classification, reason) in [
        (SentinelClassification::Undetermined, None),
        (SentinelClassification::TruePositive, Some(SentinelReason::SuspiciousActivity)),
        (SentinelClassification::FalsePositive, Some(SentinelReason::IncorrectAlertLogic)),
        (SentinelClassification::FalsePositive, Some(SentinelReason::InaccurateData)),
    ] {
        for comment in [None, Some("seen it".to_owned())] {
            cases.push(SentinelSays {
                status: SentinelStatus::Closed,
                classification: Some(classification.clone()),
                reason: reason.clone(),
                comment,
                ..sentinel_says()
            });
        }
    }
    cases
}

/// Defender states in the fields that stand alone: each takes two or three values while the others rest.
pub(crate) fn defender_scalars() -> Vec<DefenderSays> {
    let mut cases = Vec::new();
    for (title, severity) in [("Ransom", DefenderSeverity::Low), ("Renamed", DefenderSeverity::High)] {
        for owner in [None, Some("ann@contoso.com".to_owned())] {
            for tags in [vec![], vec!["VIP".to_owned()], vec!["vip".to_owned(), "b".to_owned()]] {
                for description in [Some("text".to_owned()), Some("other".to_owned())] {
                    cases.push(DefenderSays {
                        title: Some(title.into()),
                        severity: severity.clone(),
                        owner: owner.clone(),
                        tags: tags.clone(),
                        description,
                        ..defender_says()
                    });
                }
            }
        }
    }
    cases
}

/// Sentinel states in the same fields.
pub(crate) fn sentinel_scalars() -> Vec<SentinelSays> {
    let label = |name: &str, auto| Label { name: name.into(), auto };
    let mut cases = Vec::new();
    for (title, severity) in [("Ransom", SentinelSeverity::Low), ("Mine", SentinelSeverity::Medium)] {
        for owner in [
            SentinelOwner::default(),
            SentinelOwner { upn: Some("Ann@Contoso.com".into()), ..SentinelOwner::default() },
        ] {
            for labels in [vec![], vec![label("vip", false), label("Auto", true)], vec![label("c", false)]] {
                for description in [Some("text".to_owned()), Some("noted".to_owned())] {
                    cases.push(SentinelSays {
                        title: title.into(),
                        severity: severity.clone(),
                        owner: owner.clone(),
                        labels: labels.clone(),
                        description,
                        ..sentinel_says()
                    });
                }
            }
        }
    }
    cases
}
