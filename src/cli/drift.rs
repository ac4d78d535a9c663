//! `lockstep drift`: where both sides differ, and why. Reads both sides and the store, and writes to neither side; it
//! may run beside the service.

use std::process::ExitCode;
use std::sync::Arc;

use super::operate::{self, no_route};
use super::service::{Sides, watched};
use crate::adapters::clock::SystemClock;
use crate::app::drift::{Cause, Comparison, Difference, RouteReport};
use crate::app::patience::Patience;
use crate::config::Config;

/// The exit code that says that something differs.
const DRIFT: u8 = 2;
/// The part of the budgets that a command reads with: the service, if it runs, has the rest.
const SHARE: u32 = 3;

/// The configuration with a part of its budgets, for a command that reads much beside the running service.
pub(super) fn with_a_share_of_the_budgets(config: &Config) -> Config {
    let mut config = config.clone();
    let share = |limit: &mut u32| *limit = (*limit / SHARE).max(1);
    share(&mut config.limits.defender_per_minute);
    share(&mut config.limits.defender_per_hour);
    share(&mut config.limits.sentinel_reads_per_second);
    config
}

/// Waits for the sides, and says so.
pub(super) fn patience() -> Patience {
    Patience { told: Arc::new(|failure, wait| eprintln!("waiting {} s: {failure}", wait.as_secs().max(1))) }
}

pub(super) async fn run(
    config: &Config,
    route: Option<&str>,
    json: bool,
    repair: bool,
) -> anyhow::Result<ExitCode> {
    let sides = Sides::new(&with_a_share_of_the_budgets(config), &watched(config))?;
    let all = sides.routes.all();
    let chosen: Vec<_> = all.iter().filter(|known| route.is_none_or(|name| known.name == name)).collect();
    if let (Some(name), true) = (route, chosen.is_empty()) {
        return Err(no_route(config, name));
    }
    let comparison = Comparison {
        store: operate::open(config).await?,
        routes: sides.routes.clone(),
        clock: Arc::new(SystemClock),
        patience: patience(),
    };
    let mut reports = Vec::new();
    for route in chosen {
        let report = comparison.compare(route).await?;
        if !json {
            print!("{}", table(&report));
        }
        if repair {
            let told = comparison.repair(route, &report).await?;
            eprintln!("route {}: the service is asked to look at {told} link(s) again", route.name);
        }
        reports.push(report);
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    }
    let drift = reports.iter().any(RouteReport::has_drift);
    Ok(if drift { ExitCode::from(DRIFT) } else { ExitCode::SUCCESS })
}

/// A route's report for people.
fn table(report: &RouteReport) -> String {
    let mut lines = Vec::new();
    if !report.differences.is_empty() {
        let head = ["INCIDENT", "FIELD", "DEFENDER", "SENTINEL", "CAUSE", "WHY"].map(str::to_owned);
        let rows = report.differences.iter().map(|difference| {
            let Difference { incident, field, defender, sentinel, cause, why, twin: _ } = difference;
            [
                incident.clone(),
                (*field).to_owned(),
                defender.clone(),
                sentinel.clone(),
                cause.to_string(),
                why.clone(),
            ]
        });
        let rows: Vec<[String; 6]> = std::iter::once(head).chain(rows).collect();
        lines.extend(columns(&rows));
    }
    let causes = [
        Cause::InFlight,
        Cause::Clash,
        Cause::Parked,
        Cause::Missing,
        Cause::Unknown,
        Cause::Policy,
        Cause::Unsaid,
    ];
    let counts: Vec<String> = causes
        .into_iter()
        .map(|cause| (report.count(cause), cause))
        .filter(|(count, _)| *count > 0)
        .map(|(count, cause)| format!("{count} {cause}"))
        .collect();
    let counts = if counts.is_empty() { "no difference".to_owned() } else { counts.join(", ") };
    lines.push(format!(
        "route {}: {} link(s), {} in step; {counts}",
        report.route, report.links, report.in_step
    ));
    if let Some(reason) = &report.held {
        lines.push(format!("  writes are held: {reason}"));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Rows with their cells under each other. The last one is as long as it is.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_table_with_a_sum() {
        let difference = |incident: &str, field, cause| Difference {
            incident: incident.to_owned(),
            twin: "a-guid".into(),
            field,
            defender: "high".into(),
            sentinel: "Medium".into(),
            cause,
            why: "so it is".into(),
        };
        let report = RouteReport {
            route: "contoso-soc".into(),
            links: 12,
            in_step: 11,
            held: Some("a change of rules".into()),
            differences: vec![
                difference("7", "severity", Cause::InFlight),
                difference("1029", "title", Cause::Policy),
            ],
        };
        let expected = "\
INCIDENT  FIELD     DEFENDER  SENTINEL  CAUSE      WHY
7         severity  high      Medium    in flight  so it is
1029      title     high      Medium    policy     so it is
route contoso-soc: 12 link(s), 11 in step; 1 in flight, 1 policy
  writes are held: a change of rules
";
        assert_eq!(table(&report), expected);
    }
}
