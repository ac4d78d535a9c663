//! What the order of work counts. One instance per application, so that several can live in one process.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::domain::model::Side;

/// Jobs by how they ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct JobLabels {
    /// `written`, `in-step`, `known`, `nothing`, `held`, `parked`, `ignored`, `retry`, `busy`,
    /// `burst`, `saturated`, `given-back`.
    pub outcome: &'static str,
}

/// Something that happened on one side.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SideLabels {
    /// `defender` or `sentinel`.
    pub side: &'static str,
}

/// Something that happened to one field.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FieldLabels {
    /// The field's name.
    pub field: &'static str,
}

/// Something that concerns one route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteLabels {
    /// The route's name.
    pub route: String,
}

/// Failures by what failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FailureLabels {
    /// `defender`, `sentinel` or `none`.
    pub side: &'static str,
    /// The failure's short constant.
    pub code: String,
}

/// Polls by how they ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PollLabels {
    /// `defender` or `sentinel`.
    pub side: &'static str,
    /// `changed`, `empty` or `failed`.
    pub outcome: &'static str,
}

/// The families. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    jobs: Family<JobLabels, Counter>,
    writes: Family<SideLabels, Counter>,
    clashes: Family<FieldLabels, Counter>,
    failures: Family<FailureLabels, Counter>,
    panics: Counter,
    propagation: Histogram,
    polls: Family<PollLabels, Counter>,
    unreadable: Family<SideLabels, Counter>,
    swept: Counter,
    doubles: Counter,
    comments: Family<SideLabels, Counter>,
    refused: Family<FieldLabels, Counter>,
    unmapped: Family<SideLabels, Counter>,
    sweep_told: Counter,
    overlaps: Family<RouteLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a tenth of a second (notification, both sides quick) to ten minutes (an outage of one side).
        let buckets = [0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
        Self {
            jobs: Family::default(),
            writes: Family::default(),
            clashes: Family::default(),
            failures: Family::default(),
            panics: Counter::default(),
            propagation: Histogram::new(buckets),
            polls: Family::default(),
            unreadable: Family::default(),
            swept: Counter::default(),
            doubles: Counter::default(),
            comments: Family::default(),
            refused: Family::default(),
            unmapped: Family::default(),
            sweep_told: Counter::default(),
            overlaps: Family::default(),
        }
    }
}

impl Metrics {
    /// Names the families in a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("lockstep_jobs", "Jobs by how they ended", self.jobs.clone());
        registry.register("lockstep_writes", "Writes that landed, by side", self.writes.clone());
        registry.register("lockstep_clashes", "Values that gave way, by field", self.clashes.clone());
        registry.register("lockstep_failures", "Failed runs, by side and code", self.failures.clone());
        registry.register("lockstep_panics", "Panics caught in a step", self.panics.clone());
        registry.register(
            "lockstep_propagation_seconds",
            "From the first hint to the agreement, for runs that wrote",
            self.propagation.clone(),
        );
        registry.register("lockstep_polls", "Polls by side and result", self.polls.clone());
        registry.register(
            "lockstep_unreadable_records",
            "Records of a change list that could not be read",
            self.unreadable.clone(),
        );
        registry.register(
            "lockstep_native_doubles",
            "Twins that Microsoft's own connector made beside ours",
            self.doubles.clone(),
        );
        registry.register(
            "lockstep_comments",
            "Comments that were carried over, by side",
            self.comments.clone(),
        );
        registry.register(
            "lockstep_refused_values",
            "Values that a side refused, by field",
            self.refused.clone(),
        );
        registry.register(
            "lockstep_unmapped_owners",
            "Incidents whose owner was found to have no counterpart, by the side that has the owner",
            self.unmapped.clone(),
        );
        registry.register(
            "lockstep_swept_links",
            "Links that the sweep compared with a list",
            self.swept.clone(),
        );
        registry.register(
            "lockstep_sweep_hints",
            "Links that the sweep told the workers to look at",
            self.sweep_told.clone(),
        );
        registry.register(
            "lockstep_overlaps",
            "Incidents that this route would have taken and that another between the same tenant and workspace has",
            self.overlaps.clone(),
        );
    }

    pub(crate) fn job(&self, outcome: &'static str) {
        self.jobs.get_or_create(&JobLabels { outcome }).inc();
    }

    pub(crate) fn write(&self, side: Side) {
        self.writes.get_or_create(&SideLabels { side: side.as_str() }).inc();
    }

    pub(crate) fn clash(&self, field: &'static str) {
        self.clashes.get_or_create(&FieldLabels { field }).inc();
    }

    pub(crate) fn failure(&self, side: Option<Side>, code: &str) {
        let side = side.map_or("none", Side::as_str);
        self.failures.get_or_create(&FailureLabels { side, code: code.to_owned() }).inc();
    }

    pub(crate) fn panicked(&self) {
        self.panics.inc();
    }

    pub(crate) fn propagated(&self, took: Duration) {
        self.propagation.observe(took.as_secs_f64());
    }

    pub(crate) fn poll(&self, side: Side, outcome: &'static str) {
        self.polls.get_or_create(&PollLabels { side: side.as_str(), outcome }).inc();
    }

    pub(crate) fn unreadable(&self, side: Side) {
        self.unreadable.get_or_create(&SideLabels { side: side.as_str() }).inc();
    }

    pub(crate) fn doubles(&self, twins: u64) {
        self.doubles.inc_by(twins);
    }

    pub(crate) fn comment(&self, side: Side) {
        self.comments.get_or_create(&SideLabels { side: side.as_str() }).inc();
    }

    pub(crate) fn value_refused(&self, field: &'static str) {
        self.refused.get_or_create(&FieldLabels { field }).inc();
    }

    pub(crate) fn owner_unmapped(&self, side: Side) {
        self.unmapped.get_or_create(&SideLabels { side: side.as_str() }).inc();
    }

    pub(crate) fn swept(&self, links: u64) {
        self.swept.inc_by(links);
    }

    pub(crate) fn sweep_told(&self, links: u64) {
        self.sweep_told.inc_by(links);
    }

    pub(crate) fn overlap(&self, route: &str) {
        self.overlaps.get_or_create(&RouteLabels { route: route.to_owned() }).inc();
    }
}
