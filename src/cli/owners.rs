//! `lockstep owners`: who has incidents on one side and no counterpart on the other. From the store; asks neither side.

use std::process::ExitCode;

use super::operate::{self, no_route};
use crate::app::unmapped::{self, Line};
use crate::config::Config;

pub(super) async fn run(config: &Config, route: Option<&str>, json: bool) -> anyhow::Result<ExitCode> {
    let found = |name: &str| config.routes.iter().find(|known| known.name == name);
    if let Some(name) = route.filter(|name| found(name).is_none()) {
        return Err(no_route(config, name));
    }
    let store = operate::open(config).await?;
    let lines = unmapped::report(&*store, route, |name| Some(&found(name)?.policy)).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
        return Ok(ExitCode::SUCCESS);
    }
    for line in &lines {
        print!("{}", told(line));
    }
    println!("{} owner(s) without a counterpart", lines.len());
    Ok(ExitCode::SUCCESS)
}

/// An owner in lines for a person.
fn told(line: &Line) -> String {
    let Line { route, side, owner, incidents, examples, first_seen, last_seen, why, cure, .. } = line;
    let whole = |at: &time::OffsetDateTime| at.replace_nanosecond(0).unwrap_or(*at);
    let (first, last, more) =
        (whole(first_seen), whole(last_seen), if *incidents > examples.len() { ", …" } else { "" });
    let mut text = format!(
        "{owner} of {side}, route {route}: {why}\n    {incidents} incident(s) ({}{more}), first {first}, last {last}\n",
        examples.join(", ")
    );
    match (unmapped::advice(line), cure) {
        (Some(advice), _) if line.mapped_now => text.push_str(&format!("    {advice}\n")),
        (advice, Some(cure)) => {
            text.push_str(&format!("    in the route's [routes.owners]: {cure}\n"));
            text.extend(advice.map(|advice| format!("    or: {advice}\n")));
        }
        (_, None) => text.push_str("    the route is no longer configured\n"),
    }
    text
}
