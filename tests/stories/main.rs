//! Stories over HTTP: the real service as a process against the emulator as a process, driven through the emulator's
//! control listener, the real APIs with analysts' tokens, and the service's own doors and commands.
//!
//! Every story ends alike ([`stage::Stage::ends`]): both sides say the same, each incident has exactly one twin, nothing
//! is parked unless the story says so, no fault is left, and nobody writes any more. They share nothing, so they run
//! side by side. Those that mostly wait (for a budget to refill, for a held side's next probe) are gathered in one
//! test, because test runners count cores and not waiting.

#![cfg(feature = "emulator")]

#[path = "../support/mod.rs"]
mod support;

mod alerts;
mod backfill;
mod bad_records;
mod budget;
mod doors;
mod drift;
mod explains;
mod fields;
mod many;
mod merged;
mod operators;
mod policies;
mod process;
mod routes;
mod stage;
mod subscriptions;
mod switches;
mod trouble;
mod whole;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "waits for more than a minute: scripts/test runs it"]
async fn all_that_waits() {
    stage::side_by_side(vec![
        (
            "a backfill uses the budget and never overruns it",
            Box::pin(backfill::it_uses_the_budget_and_never_overruns_it()),
        ),
        ("a flood of incidents overruns no limit", Box::pin(budget::a_flood_overruns_no_limit())),
        (
            "a change costs at most three calls, its echo included",
            Box::pin(budget::a_change_costs_three_calls()),
        ),
        ("hold stops writes, over a restart, until release", Box::pin(operators::hold_and_release())),
        ("a link that something else keeps changing is put aside", Box::pin(operators::another_program())),
        (
            "a refused side is held and probed, its neighbour is not",
            Box::pin(trouble::a_refused_side_is_held()),
        ),
        ("a refused tenant is held and probed", Box::pin(trouble::a_refused_tenant_is_held())),
        ("a sign-in that stumbles is tried again", Box::pin(trouble::sign_in_stumbles())),
        ("Graph says later, and when", Box::pin(trouble::throttled("graph", "PATCH", Some(4), 4.0))),
        ("Graph says later, and not when", Box::pin(trouble::throttled("graph", "PATCH", None, 4.9))),
        ("ARM says later, and when", Box::pin(trouble::throttled("arm", "PUT", Some(4), 4.0))),
        ("an answer that never comes in time", Box::pin(trouble::silence())),
        (
            "a comment that never arrived is sent again",
            Box::pin(whole::a_comment_that_never_arrived_is_sent_again()),
        ),
    ])
    .await;
}
