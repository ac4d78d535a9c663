//! `lockstep backfill`: counts what would be copied, orders it, tells how far it is, takes it back. The running service
//! does the work; this command writes nothing to either side.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::drift::{columns, patience, with_a_share_of_the_budgets};
use super::operate::{self, no_route};
use super::service::{Sides, watched};
use crate::adapters::budget::Limits;
use crate::adapters::clock::SystemClock;
use crate::app::backfill::{self, BackfillOptions, Backfiller, Order, Phase, Progress, Survey};
use crate::config::{BACKFILL_ORDERS, Config, Since};
use crate::ports::{Clock, Store};

/// What is asked.
#[derive(clap::Args)]
pub(super) struct What {
    /// Incidents that came to be from then on: a date (UTC), an instant, or a time ago.
    #[arg(long, value_name = "DATE", default_value = "180d")]
    since: String,
    /// Incidents that came to be before then; now when it is left out.
    #[arg(long, value_name = "DATE")]
    until: Option<String>,
    /// Which go first.
    #[arg(long, value_parser = ["newest", "oldest"], default_value = "newest")]
    order: String,
    /// Count what would be copied, and what it would cost. Nothing is ordered.
    #[arg(long, conflicts_with_all = ["status", "cancel"])]
    dry_run: bool,
    /// Say how far the last order is.
    #[arg(long, conflicts_with = "cancel")]
    status: bool,
    /// Take the order back. What is in the queue already is still copied.
    #[arg(long)]
    cancel: bool,
}

pub(super) async fn run(config: &Config, route: &str, what: &What) -> anyhow::Result<ExitCode> {
    if !config.routes.iter().any(|known| known.name == route) {
        return Err(no_route(config, route));
    }
    let store = operate::open(config).await?;
    let now = SystemClock.now();
    if what.status {
        print!("{}", told(route, backfill::status(&*store, route).await?.as_ref(), now));
        let waiting = store.queue_stats().await?.waiting;
        println!("{waiting} incident(s) wait in the queue of all routes");
        return Ok(ExitCode::SUCCESS);
    }
    if what.cancel {
        if !backfill::cancel(&*store, route, now).await? {
            bail!("no backfill of route {route} is under way");
        }
        println!("the backfill of route {route} is taken back; what is in the queue is still copied");
        return Ok(ExitCode::SUCCESS);
    }
    let since = point(&what.since, now)?;
    let until = what.until.as_deref().map_or(Ok(now), |text| point(text, now))?.min(now);
    if since >= until {
        bail!("nothing came to be between {} and {}", instant(since), instant(until));
    }
    if what.dry_run {
        return dry_run(config, store, route, since, until).await;
    }
    if let Some((order, progress)) = backfill::status(&*store, route).await?
        && backfill::is_active(&order, progress.as_ref())
    {
        bail!("a backfill of route {route} is under way: see --status, or take it back with --cancel first");
    }
    let newest_first = BACKFILL_ORDERS.iter().any(|(word, newest)| *word == what.order && *newest);
    let by = "command".to_owned();
    let order = Order { since, until, newest_first, ordered_at: now, by, cancelled: false };
    backfill::give(&*store, route, &order).await?;
    println!(
        "ordered: what came to be from {} to {} on route {route}, the {} first",
        instant(since),
        instant(until),
        what.order
    );
    println!("the running service takes it up within seconds: lockstep backfill {route} --status");
    Ok(ExitCode::SUCCESS)
}

fn point(text: &str, now: OffsetDateTime) -> anyhow::Result<OffsetDateTime> {
    let since = Since::parse(text).ok_or_else(|| {
        anyhow!("{text:?} is no date: write one such as 2026-01-31, an instant, or a time ago such as 30d")
    })?;
    Ok(since.instant(now))
}

fn instant(at: OffsetDateTime) -> String {
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

async fn dry_run(
    config: &Config,
    store: Arc<dyn Store>,
    route: &str,
    since: OffsetDateTime,
    until: OffsetDateTime,
) -> anyhow::Result<ExitCode> {
    let sides = Sides::new(&with_a_share_of_the_budgets(config), &watched(config))?;
    let routes = sides.routes.clone();
    let backfiller = Backfiller {
        store,
        routes: routes.clone(),
        clock: Arc::new(SystemClock),
        options: BackfillOptions::default(),
    };
    let Some(found) = routes.all().iter().find(|known| known.name == route) else {
        return Err(no_route(config, route));
    };
    let survey = backfiller.survey(found, since, until, &patience()).await?;
    println!("route {route}: what came to be from {} to {}", instant(since), instant(until));
    print!("{}", counted(&survey));
    print!("{}", estimated(&survey, config));
    println!("nothing was ordered");
    Ok(ExitCode::SUCCESS)
}

/// The counts by month and status, and what they come to.
fn counted(survey: &Survey) -> String {
    let statuses: BTreeSet<&str> =
        survey.months.values().flat_map(|month| month.keys().map(String::as_str)).collect();
    let mut rows = vec![["MONTH".to_owned(), "INCIDENTS".to_owned(), "BY STATUS".to_owned()]];
    for (month, counts) in &survey.months {
        let by = statuses.iter().filter_map(|status| Some((counts.get(*status)?, status)));
        let by: Vec<String> = by.map(|(count, status)| format!("{count} {status}")).collect();
        rows.push([month.clone(), counts.values().sum::<u64>().to_string(), by.join(", ")]);
    }
    let mut text = String::new();
    for line in columns(&rows) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{line}");
    }
    let Survey { incidents, linked, merged, to_link, unreadable, .. } = survey;
    let _ = writeln!(
        text,
        "{incidents} incident(s): {linked} already linked, {merged} merged away, {to_link} to be linked"
    );
    if *unreadable > 0 {
        let _ = writeln!(text, "{unreadable} more cannot be read");
    }
    text
}

/// What it would cost, and how long it would take when nothing else is done.
fn estimated(survey: &Survey, config: &Config) -> String {
    // A new twin: is it there, what does Defender say, create it.
    let (graph, arm) = (survey.to_link + survey.pages, 2 * survey.to_link);
    let limits = Limits::default();
    let share = |limit: u32, margin: f64, span: f64| {
        let allowed = f64::from(limit) * margin;
        let polls = (span / config.poll.defender_every.as_secs_f64()).min(allowed * limits.polls_own);
        (allowed - polls).max(1.0)
    };
    let per_minute = share(config.limits.defender_per_minute, limits.minute_margin, 60.0);
    let per_hour = share(config.limits.defender_per_hour, limits.hour_margin, 3_600.0);
    let calls = graph as f64;
    let whole_hours = (calls / per_hour).floor();
    let rest = calls - whole_hours * per_hour;
    // What fits into a minute, or into an hour, is spent at its start.
    let by_graph = whole_hours * 3_600.0 + (rest / per_minute).floor() * 60.0;
    let by_arm =
        survey.to_link as f64 / (f64::from(config.limits.sentinel_writes_per_second) * limits.margin);
    let time = Duration::from_secs_f64(by_graph.max(by_arm));
    format!(
        "about {graph} call(s) to Graph and {arm} to Azure Resource Manager: {} at {} a minute and {} an hour\n",
        lasting(time),
        config.limits.defender_per_minute,
        config.limits.defender_per_hour
    )
}

fn lasting(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match minutes {
        0 => "less than a minute".to_owned(),
        1..120 => format!("{minutes} min"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

/// How far an order is, in lines for a person.
fn told(route: &str, status: Option<&(Order, Option<Progress>)>, now: OffsetDateTime) -> String {
    let Some((order, progress)) = status else {
        return format!("no backfill of route {route} was ever ordered\n");
    };
    let first = if order.newest_first { "newest" } else { "oldest" };
    let mut text = format!(
        "ordered {} by the {}: what came to be from {} to {}, the {first} first\n",
        instant(order.ordered_at),
        order.by,
        instant(order.since),
        instant(order.until)
    );
    let Some(progress) = progress else {
        text.push_str(match order.cancelled {
            true => "taken back before it began\n",
            false => "not begun: does the service run?\n",
        });
        return text;
    };
    let state = match (progress.phase, order.cancelled) {
        (Phase::Done, _) => "done".to_owned(),
        (Phase::Failed, _) => format!("failed: {}", progress.note.as_deref().unwrap_or("no reason is known")),
        (Phase::Running, true) => "taken back".to_owned(),
        (Phase::Running, false) => {
            let whole = (order.until - order.since).as_seconds_f64().max(1.0);
            let (from, to) = match order.newest_first {
                true => (progress.position, order.until),
                false => (order.since, progress.position),
            };
            let part = (to - from).as_seconds_f64() / whole * 100.0;
            let ago = (now - progress.at).whole_minutes().max(0);
            format!("at {}, {part:.0} % of the time span; this was {ago} min ago", instant(progress.position))
        }
    };
    let Progress { incidents, linked, merged, told, pages, .. } = progress;
    let _ = writeln!(text, "{state}");
    let _ = writeln!(
        text,
        "{incidents} incident(s) on {pages} page(s): {linked} were linked, {merged} merged away, {told} handed over"
    );
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_dry_run_prints_counts_and_costs() {
        let month = |counts: &[(&str, u64)]| counts.iter().map(|(s, n)| ((*s).to_owned(), *n)).collect();
        let survey = Survey {
            months: [
                ("2026-02".to_owned(), month(&[("resolved", 2_000), ("active", 15)])),
                ("2026-01".to_owned(), month(&[("redirected", 5)])),
            ]
            .into(),
            incidents: 2_020,
            linked: 12,
            merged: 5,
            to_link: 2_003,
            unreadable: 0,
            pages: 41,
        };
        let expected = "\
MONTH    INCIDENTS  BY STATUS
2026-01  5          5 redirected
2026-02  2015       15 active, 2000 resolved
2020 incident(s): 12 already linked, 5 merged away, 2003 to be linked
";
        assert_eq!(counted(&survey), expected);
        let config = Config::parse("", &BTreeMap::new(), &|_| Err(std::io::ErrorKind::NotFound.into()));
        let config = config.expect("nothing is needed");
        // An hour allows 1,425, of which the polls have a tenth; the other 762 go at 42 a minute.
        assert_eq!(
            estimated(&survey, &config),
            "about 2044 call(s) to Graph and 4006 to Azure Resource Manager: 78 min at 50 a minute and 1500 an hour\n"
        );
    }

    #[test]
    fn a_status_says_how_far_it_is() {
        let at = |hours: i64| OffsetDateTime::UNIX_EPOCH + time::Duration::hours(hours);
        let order = Order {
            since: at(0),
            until: at(100),
            newest_first: true,
            ordered_at: at(100),
            by: "command".into(),
            cancelled: false,
        };
        let progress = Progress {
            order: at(100),
            phase: Phase::Running,
            position: at(75),
            incidents: 7,
            linked: 2,
            merged: 1,
            told: 4,
            pages: 3,
            began: at(100),
            at: at(101),
            note: None,
        };
        let said = told("main", Some(&(order.clone(), Some(progress))), at(102));
        assert!(said.contains("1970-01-01T00:00:00Z to 1970-01-05T04:00:00Z, the newest first"), "{said}");
        assert!(said.contains("25 % of the time span; this was 60 min ago"), "{said}");
        assert!(
            said.contains("7 incident(s) on 3 page(s): 2 were linked, 1 merged away, 4 handed over"),
            "{said}"
        );
        assert!(told("main", Some(&(order, None)), at(102)).contains("not begun"));
        assert!(told("main", None, at(102)).contains("was ever ordered"));
    }
}
