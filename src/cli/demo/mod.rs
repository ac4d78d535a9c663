//! The demo: the emulator and the service in one process with a store in a temporary folder, and a short story that
//! prints every plan as it is carried out. The service runs the same code as `lockstep serve`, over HTTP on loopback.

mod stage;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use reqwest::Method;
use serde_json::{Value, json};

use crate::config::Config;
use crate::domain::model::LinkKey;
use crate::domain::plan::Plan;
use crate::emulator;
use crate::ports::LinkRecord;

use super::service::{self, Service};
use stage::{Analyst, Stage};

/// The incidents that are there when the story begins: the published examples (`tests/fixtures/graph`).
const EXAMPLES: &str = include_str!("incidents.json");
const WENDY: Analyst = Analyst { upn: "wendy@contoso.com" };
const OMAR: Analyst = Analyst { upn: "omar@contoso.com" };
const NEW: &str = "41";
const LOST: &str = "42";

pub(super) async fn run(once: bool) -> anyhow::Result<ExitCode> {
    let emulator = emulator::start(&emulator::Args::default()).await.context("the emulator")?;
    let folder = tempfile::tempdir().context("a temporary folder for the store")?;
    let stage = Stage::new(emulator.hello.clone())?;
    let secret = format!(
        "whsec_{}",
        base64::engine::general_purpose::STANDARD.encode(uuid::Uuid::new_v4().as_bytes().repeat(2))
    );
    let config = configuration(&stage, folder.path(), &secret)?;
    let service = Service::start(&config, Some(Arc::new(print_plan))).await?;
    println!("Lockstep demo: an emulated Defender XDR, an emulated Sentinel, and the service between them.");
    println!("  service   http://{}", service.address);
    println!("  Defender  {}/v1.0/security/incidents", stage.hello.graph);
    println!("  Sentinel  {}{}", stage.hello.arm, stage.workspace());
    println!("  control   {}", stage.hello.control);
    let url = format!("http://{}/notify/sentinel/soc", service.address);
    let playbook = json!({
        "workspace": stage.hello.workspace_name, "url": url, "auth": {"kind": "hmac", "secret": secret},
    });
    stage.control(Method::POST, "/playbooks", Some(playbook)).await?;

    let told = tell(&stage, &service).await;
    let code = match &told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe story broke off: {error:#}");
            ExitCode::FAILURE
        }
    };
    if !once && told.is_ok() {
        println!("\nThe story is told; everything keeps running. Ctrl-C ends it. Things to try:");
        println!("  curl -s {}/state", stage.hello.control);
        println!("  curl -s http://{}/readyz", service.address);
        println!("  curl -s http://{}/metrics", service.address);
        println!("  curl -s {}/incidents -d '{EXAMPLE}'", stage.hello.control);
        service::interrupted().await?;
    }
    service.stop().await;
    emulator.stop().await;
    Ok(code)
}

const EXAMPLE: &str = r#"{"displayName":"Mine","severity":"high","status":"active"}"#;

/// The demo's configuration, as a person would write it.
fn configuration(stage: &Stage, folder: &std::path::Path, secret: &str) -> anyhow::Result<Config> {
    let emulator::Hello {
        login, graph, arm, tenant_id, subscription_id, resource_group, workspace_name, ..
    } = &stage.hello;
    let store = folder.join("lockstep.db");
    let store = store.to_str().context("the temporary folder's name is not UTF-8")?;
    let text = format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        [store]
        url = 'sqlite://{store}'
        [[tenants]]
        name = "contoso"
        tenant_id = "{tenant_id}"
        client_id = "00000000-0000-4000-8000-00000000de30"
        client_secret = "emulator-secret"
        login_url = "{login}"
        graph_url = "{graph}"
        arm_url = "{arm}"
        [[workspaces]]
        name = "soc"
        tenant = "contoso"
        subscription_id = "{subscription_id}"
        resource_group = "{resource_group}"
        workspace_name = "{workspace_name}"
        webhook_secrets = ["{secret}"]
        [[routes]]
        name = "contoso-soc"
        tenant = "contoso"
        workspace = "soc"
        [poll]
        defender_every = "3s"
        sentinel_every = "5s"
        "#
    );
    Ok(Config::parse(&text, &Default::default(), &|path| std::fs::read_to_string(path))?)
}

fn print_plan(link: &LinkKey, plan: &Plan) {
    println!("   plan for incident {}:", link.incident_id);
    for line in plan.to_string().lines() {
        println!("     {line}");
    }
}

async fn tell(stage: &Stage, service: &Service) -> anyhow::Result<()> {
    let examples: Vec<Value> = serde_json::from_str(EXAMPLES).context("the examples")?;
    println!(
        "\n1. Four incidents are in Defender when the service starts. One was merged into another there."
    );
    for incident in &examples {
        stage.control(Method::POST, "/incidents", Some(incident.clone())).await?;
    }
    for incident in &examples {
        let id = incident["id"].as_str().context("an example without id")?;
        if incident["status"] != "redirected" {
            twin_when(stage, service, id, "it has a twin", |_| true).await?;
        }
    }
    show(stage, service).await?;

    println!("\n2. A new incident appears in Defender, with owner, verdict and tags. The poller finds it.");
    let fresh = json!({
        "id": NEW, "displayName": "Credential theft on FIN-SRV-03", "severity": "medium", "status": "inProgress",
        "description": "LSASS memory was read by an unsigned process.", "assignedTo": OMAR.upn,
        "classification": "truePositive", "determination": "compromisedAccount",
        "customTags": ["Finance", "VIP"],
    });
    stage.control(Method::POST, "/incidents", Some(fresh)).await?;
    let (twin, took) = twin_when(stage, service, NEW, "it is copied", |_| true).await?;
    let labels = twin["properties"]["labels"].as_array().map_or(0, Vec::len);
    ensure!(labels == 3, "two tags and a determination were expected in Sentinel, not {labels} labels");
    println!("   -> in Sentinel after {}", seconds(took));

    println!(
        "\n3. {} closes it in Sentinel as a false alarm. The playbook tells Lockstep; Defender follows.",
        WENDY.upn
    );
    let name = twin["name"].as_str().context("a twin without name")?.to_owned();
    let verdict = json!({
        "status": "Closed", "classification": "FalsePositive", "classificationReason": "IncorrectAlertLogic",
        "classificationComment": "Backup agent, approved.",
    });
    stage.edit_sentinel(&WENDY, &name, verdict).await?;
    let took = defender_when(stage, NEW, "Defender follows", |incident| {
        incident["status"] == "resolved" && incident["classification"] == "falsePositive"
    })
    .await?;
    let incident = stage.incident(NEW).await?.context("the incident is gone")?;
    println!(
        "   -> Defender says {}, {}/{}, {} after {}",
        incident["status"],
        incident["classification"],
        incident["determination"],
        incident["resolvingComment"],
        seconds(took)
    );

    println!("\n4. Both sides are edited at once: {} in Defender, {} in Sentinel.", OMAR.upn, WENDY.upn);
    let link = link_of(service, "34").await?.context("incident 34 has no link")?;
    let in_sentinel = stage.edit_sentinel(
        &WENDY,
        &link.sentinel_id,
        json!({
            "severity": "High", "labels": [{"labelName": "from-sentinel"}],
        }),
    );
    let in_defender = stage.edit_defender(
        &OMAR,
        "34",
        json!({
            "severity": "medium", "customTags": ["from-defender"], "assignedTo": OMAR.upn,
        }),
    );
    tokio::try_join!(in_sentinel, in_defender)?;
    defender_when(stage, "34", "the tags are united", |incident| {
        incident["customTags"].as_array().is_some_and(|tags| tags.len() == 2)
    })
    .await?;
    let (twin, _) = twin_when(stage, service, "34", "Sentinel agrees", |twin| {
        twin["properties"]["severity"] == "Medium"
            && twin["properties"]["owner"]["userPrincipalName"] == OMAR.upn
    })
    .await?;
    println!(
        "   -> severity {} on both sides, {} tags on both sides, owner {}",
        twin["properties"]["severity"],
        twin["properties"]["labels"].as_array().map_or(0, Vec::len),
        twin["properties"]["owner"]["userPrincipalName"]
    );

    println!(
        "\n5. Sentinel takes a new twin and its answer is lost; then Graph takes a change and its answer is lost."
    );
    let fault = json!({
        "service": "arm", "method": "PUT", "pathContains": "/incidents/", "times": 1, "kind": "drop-after",
    });
    stage.control(Method::POST, "/faults", Some(fault)).await?;
    let lost =
        json!({"id": LOST, "displayName": "Beacon to a young domain", "severity": "low", "status": "active"});
    stage.control(Method::POST, "/incidents", Some(lost)).await?;
    let (twin, _) = twin_when(stage, service, LOST, "it is copied", |_| true).await?;
    let fault = json!({
        "service": "graph", "method": "PATCH", "pathContains": LOST, "times": 1, "kind": "drop-after",
    });
    stage.control(Method::POST, "/faults", Some(fault)).await?;
    let name = twin["name"].as_str().context("a twin without name")?.to_owned();
    stage.edit_sentinel(&WENDY, &name, json!({"status": "Active", "severity": "High"})).await?;
    defender_when(stage, LOST, "Defender follows", |incident| {
        incident["status"] == "inProgress" && incident["severity"] == "high"
    })
    .await?;
    let doubles = stage
        .twins()
        .await?
        .iter()
        .filter(|twin| twin["properties"]["title"] == "Beacon to a young domain")
        .count();
    ensure!(doubles == 1, "{doubles} twins of one incident");
    println!("   -> one incident, one twin, nothing written twice by guess");

    println!("\nIs everything in step? Each link is read again on both sides and planned once more.");
    in_step(stage, service).await?;
    show(stage, service).await
}

/// Every incident has its link, every link is at rest, and no fault is left.
async fn in_step(stage: &Stage, service: &Service) -> anyhow::Result<()> {
    stage
        .until("the queue is empty", || async {
            let stats = service.store.queue_stats().await?;
            ensure!(stats.parked == 0, "{} incidents are parked", stats.parked);
            Ok(stats.waiting == 0)
        })
        .await?;
    let state = stage.state().await?;
    let faults = state["faults"].as_array().map_or(0, Vec::len);
    ensure!(faults == 0, "{faults} faults are left");
    let incidents =
        state["tenants"][&stage.hello.tenant_id]["incidents"].as_array().context("no incidents")?;
    let links = service.store.links(None, None, 1_000).await?;
    let live = incidents.iter().filter(|incident| incident["status"] != "redirected").count();
    ensure!(links.len() == live, "{live} incidents, but {} links", links.len());
    ensure!(stage.twins().await?.len() == live, "{live} incidents, but another number of twins");
    for link in &links {
        ensure!(link.parked.is_none(), "incident {} is parked: {:?}", link.key.incident_id, link.parked);
        let plan = service.look(&link.key).await?;
        ensure!(plan.is_empty() && plan.clashes.is_empty(), "incident {}: {plan}", link.key.incident_id);
    }
    println!("   -> {} links, all in step; no fault left", links.len());
    Ok(())
}

async fn link_of(service: &Service, incident: &str) -> anyhow::Result<Option<LinkRecord>> {
    let links = service.store.links(None, None, 1_000).await?;
    Ok(links.into_iter().find(|link| link.key.incident_id == incident))
}

/// Waits until the twin of an incident is there and says what is expected.
async fn twin_when(
    stage: &Stage,
    service: &Service,
    incident: &str,
    what: &str,
    says: impl Fn(&Value) -> bool,
) -> anyhow::Result<(Value, Duration)> {
    let found = std::sync::Mutex::new(None);
    let took = stage
        .until(&format!("incident {incident}: {what}"), || async {
            let Some(link) = link_of(service, incident).await? else { return Ok(false) };
            let twins = stage.twins().await?;
            let twin = twins.into_iter().find(|twin| twin["name"] == link.sentinel_id.as_str());
            let reached = twin.as_ref().is_some_and(&says);
            if let Ok(mut found) = found.lock() {
                *found = twin;
            }
            Ok(reached)
        })
        .await?;
    let twin = found.into_inner().ok().flatten().context("it was there a moment ago")?;
    Ok((twin, took))
}

/// Waits until Defender's incident says what is expected.
async fn defender_when(
    stage: &Stage,
    incident: &str,
    what: &str,
    says: impl Fn(&Value) -> bool,
) -> anyhow::Result<Duration> {
    stage
        .until(&format!("incident {incident}: {what}"), || async {
            let Some(found) = stage.incident(incident).await? else { bail!("incident {incident} is gone") };
            Ok(says(&found))
        })
        .await
}

/// One line per link.
async fn show(stage: &Stage, service: &Service) -> anyhow::Result<()> {
    let twins = stage.twins().await?;
    for link in service.store.links(None, None, 1_000).await? {
        let Some(incident) = stage.incident(&link.key.incident_id).await? else { continue };
        let twin = twins.iter().find(|twin| twin["name"] == link.sentinel_id.as_str());
        let Some(twin) = twin.map(|twin| &twin["properties"]) else { continue };
        println!(
            "   {:>3} {:<15} {:<7} = #{:<3} {:<7} {:<7} {}",
            text(&incident["id"]),
            text(&incident["status"]),
            text(&incident["severity"]),
            twin["incidentNumber"],
            text(&twin["status"]),
            text(&twin["severity"]),
            text(&twin["title"])
        );
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}
