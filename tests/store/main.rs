//! One contract, two stores: every case of `contract` and the law of `law` runs on SQLite and on PostgreSQL.
//!
//! SQLite is always tested. PostgreSQL needs a server: `scripts/with-postgres cargo test` starts a private one, or
//! `LOCKSTEP_TEST_POSTGRES=postgres://…` names one (each case makes a schema of its own in it and drops it again).
//! Where the variable is set nothing is left out: `the_contract_on_postgres` runs the cases, and fails where the server
//! does not answer. Where it is not set they show as ignored.

#![allow(clippy::unwrap_used, reason = "a case that meets an error is to fail")]

mod contract;
mod law;
mod place;
mod postgres_only;
mod sqlite_only;

use place::Place;

macro_rules! contract {
    ($($suite:ident :: $case:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::Place::sqlite().run(super::$suite::$case).await;
            })+
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs PostgreSQL: run scripts/test, or set LOCKSTEP_TEST_POSTGRES"]
            async fn $case() {
                super::Place::postgres().await.run(super::$suite::$case).await;
            })+
        }
    };
}

contract! {
    contract::a_hint_becomes_a_job_that_knows_what_the_hint_said,
    contract::many_hints_are_one_job,
    contract::a_version_stands_only_if_every_hint_named_it,
    contract::sources_are_distinct_and_bounded,
    contract::hints_during_a_lease_are_not_lost,
    contract::a_hint_ends_the_wait_of_a_row_that_is_to_be_looked_at_again,
    contract::a_failed_job_waits_and_keeps_its_hints,
    contract::a_lease_that_runs_out_is_given_to_another,
    contract::a_broken_off_lease_takes_no_version_for_all,
    contract::a_served_row_rests,
    contract::the_oldest_hint_comes_first,
    contract::a_scope_that_is_skipped_waits_and_holds_nobody_up,
    contract::scopes_take_turns,
    contract::the_background_waits_for_live_work,
    contract::a_flood_of_live_work_leaves_the_background_a_share,
    contract::a_live_hint_wakes_a_background_row,
    contract::thousands_of_scopes_in_the_background_hold_nobody_up,
    contract::thousands_of_scopes_all_have_their_turn,
    contract::a_parked_row_waits_for_news,
    contract::news_that_came_while_the_job_ran_is_news,
    contract::a_person_unparks_a_row_and_its_link,
    contract::what_is_parked_of_one_incident_is_one_entry,
    contract::a_row_is_shown_as_it_waits,
    contract::a_repeated_delivery_stores_nothing,
    contract::a_delivery_repeated_at_the_same_time_is_stored_once,
    contract::no_wake_up_is_lost,
    contract::nobody_gets_a_row_that_another_holds,
    contract::a_fence_has_one_holder,
    contract::a_link_is_saved_under_its_fence_only,
    contract::links_are_paged_in_key_order,
    contract::links_are_found_by_their_twin,
    contract::the_journal_keeps_its_order,
    contract::values_are_kept,
    contract::values_are_found_by_the_beginning_of_their_name,
    contract::a_hold_keeps_its_first_instant,
    contract::holds_are_seen_across_processes,
    contract::purging_forgets_what_is_past_and_nothing_else,
    contract::all_is_there_after_a_restart,
    contract::odd_text_comes_back_as_it_was,
    contract::a_refused_command_does_not_hurt_its_neighbours,
    contract::the_queue_is_counted,
    contract::a_ping_commits,
    law::a_random_life_goes_as_the_model_says,
}

/// Runs the cases on PostgreSQL wherever a server is named, so that no flag can be forgotten.
#[test]
fn the_contract_on_postgres() {
    if std::env::var_os(place::POSTGRES).is_none() {
        eprintln!("PostgreSQL is NOT TESTED here: run scripts/test, or set {}", place::POSTGRES);
        return;
    }
    let this = std::env::current_exe().expect("a test binary has a path");
    let cases =
        std::process::Command::new(this).args(["--ignored", "postgres", "--test-threads", "4"]).output();
    let cases = cases.expect("the test binary starts");
    let said = String::from_utf8_lossy(&cases.stdout);
    assert!(cases.status.success(), "{said}{}", String::from_utf8_lossy(&cases.stderr));
    let summary = said.lines().find(|line| line.starts_with("test result")).unwrap_or_default().to_owned();
    assert!(!summary.contains(" 0 passed"), "nothing ran: {said}");
    eprintln!("on PostgreSQL: {summary}");
}
