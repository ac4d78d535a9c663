//! A stand-in for Entra ID, Microsoft Graph, ARM with Microsoft Sentinel, and Log Analytics ingestion: the real APIs as
//! far as we know them (`graph.md` §18, `sentinel.md` §22), over HTTP on loopback. The rules live in [`world`], a plain
//! state machine that tests drive without HTTP; the other modules only speak the protocols.

pub mod odata;
pub mod world;

mod arm;
mod control;
mod entra;
pub mod forge;
mod graph;
mod halves;
mod http;
mod notify;
pub mod seal;
mod signer;
mod tls;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use signer::Signer;
use world::World;
use world::defender::Tenant;
use world::sentinel::Workspace;

/// The secret with which every client id gets a token.
pub const SECRET: &str = "emulator-secret";

/// Where to listen, and how.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Args {
    /// The port for sign-in (Entra ID); 0 for a free one.
    #[arg(long, default_value_t = 0)]
    pub login_port: u16,
    /// The port for Graph.
    #[arg(long, default_value_t = 0)]
    pub graph_port: u16,
    /// The port for Azure Resource Manager with Sentinel.
    #[arg(long, default_value_t = 0)]
    pub arm_port: u16,
    /// The port for Log Analytics ingestion.
    #[arg(long, default_value_t = 0)]
    pub ingestion_port: u16,
    /// The port for the control listener.
    #[arg(long, default_value_t = 0)]
    pub control_port: u16,
    /// Serve TLS, with certificates by an authority made now, whose certificate is written to DIR/ca.pem.
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// Makes a run repeatable: the first tenant, subscription and workspace follow from it.
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long a playbook waits before its first repetition; the later waits grow from it [default: 7500, as Logic
    /// Apps do].
    #[arg(long, value_name = "MS")]
    pub playbook_wait_ms: Option<u64>,
}

/// Where everything is: the first line on standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// Entra ID.
    pub login: String,
    /// Graph.
    pub graph: String,
    /// Azure Resource Manager.
    pub arm: String,
    /// Log Analytics ingestion.
    pub ingestion: String,
    /// The control listener.
    pub control: String,
    /// The first tenant.
    pub tenant_id: String,
    /// The first workspace's subscription.
    pub subscription_id: String,
    /// The first workspace's resource group.
    pub resource_group: String,
    /// The first workspace.
    pub workspace_name: String,
}

/// One line of `GET /calls`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Call {
    /// Finds it again when it is answered.
    #[serde(skip)]
    pub(crate) id: uuid::Uuid,
    pub(crate) at: String,
    pub(crate) service: &'static str,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) app: Option<String>,
    /// `None` while it runs, and for good when the connection was cut.
    pub(crate) status: Option<u16>,
    pub(crate) fault: Option<String>,
}

/// How many calls are kept. Beyond it the oldest go.
const MOST_CALLS: usize = 200_000;

/// What all listeners share.
pub(crate) struct Shared {
    world: Mutex<World>,
    pub(crate) calls: Mutex<Vec<Call>>,
    pub(crate) signer: Signer,
    pub(crate) hello: Hello,
    pub(crate) playbooks: notify::Playbooks,
}

impl Shared {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        // The rules do not panic half way; and if they did, a test shall see what is there.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn calls(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    /// Remembers a call.
    pub(crate) fn begin_call(&self, call: Call) {
        let mut calls = self.calls();
        if calls.len() >= MOST_CALLS {
            calls.drain(..MOST_CALLS / 10);
        }
        calls.push(call);
    }

    /// Remembers how a call was answered, unless it was forgotten meanwhile.
    pub(crate) fn end_call(&self, id: uuid::Uuid, status: u16) {
        if let Some(call) = self.calls().iter_mut().rev().find(|call| call.id == id) {
            call.status = Some(status);
        }
    }

    /// Sends what the last operation caused: playbooks for Sentinel, notifications for Graph.
    pub(crate) fn send_news(self: &Arc<Self>) {
        notify::send(self);
    }
}

/// A running emulator.
pub struct Running {
    /// Where everything is.
    pub hello: Hello,
    shared: Arc<Shared>,
    handles: Vec<Handle<SocketAddr>>,
}

impl Running {
    /// Everything that both sides hold, as `GET /state` has it.
    pub fn state(&self) -> Value {
        self.shared.world().describe()
    }

    /// A token to order, genuine or forged: what `POST /tokens/mint` answers.
    pub fn mint(&self, order: &Value) -> Result<String, String> {
        let order = forge::Mint::read(order, &self.hello)?;
        self.shared.signer.mint(&order, &self.hello, self.shared.now()).map_err(|error| error.to_string())
    }

    /// Ends all listeners.
    pub async fn stop(self) {
        for handle in &self.handles {
            handle.graceful_shutdown(Some(Duration::from_millis(200)));
        }
        self.shared.playbooks.stop();
    }
}

/// Starts all five listeners and returns when each accepts.
pub async fn start(args: &Args) -> anyhow::Result<Running> {
    let tls = match &args.tls {
        Some(folder) => Some(tls::certificates(folder)?),
        None => None,
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut listeners = Vec::new();
    let ports = [args.login_port, args.graph_port, args.arm_port, args.ingestion_port, args.control_port];
    for port in ports {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("cannot listen on port {port} of this machine"))?;
        listener.set_nonblocking(true)?;
        listeners.push(listener);
    }
    let mut urls = Vec::new();
    for listener in &listeners {
        urls.push(format!("{scheme}://{}", listener.local_addr()?));
    }
    let [login, graph, arm, ingestion, control] = urls.as_slice() else {
        anyhow::bail!("five listeners were bound");
    };
    let hello = first(args.seed, [login, graph, arm, ingestion, control]);
    let mut world = World::default();
    let tenant = Tenant::new(&hello.tenant_id);
    world.tenants.insert(tenant.id.clone(), tenant);
    let workspace = Workspace::new(
        &hello.tenant_id,
        &hello.subscription_id,
        &hello.resource_group,
        &hello.workspace_name,
    );
    world.workspaces.insert(workspace.key(), workspace);
    let shared = Arc::new(Shared {
        world: Mutex::new(world),
        calls: Mutex::default(),
        signer: Signer::new()?,
        hello: hello.clone(),
        playbooks: notify::Playbooks::new(args.playbook_wait_ms.map(Duration::from_millis)),
    });
    let routers: [Router; 5] = [
        entra::router(Arc::clone(&shared)),
        graph::router(Arc::clone(&shared)),
        arm::router(Arc::clone(&shared)),
        http::ingestion(Arc::clone(&shared)),
        control::router(Arc::clone(&shared)),
    ];
    let mut handles = Vec::new();
    for (listener, router) in listeners.into_iter().zip(routers) {
        let handle = Handle::new();
        handles.push(handle.clone());
        let service = router.into_make_service();
        match &tls {
            Some(config) => {
                let config = RustlsConfig::from_config(Arc::clone(config));
                let server = axum_server::from_tcp_rustls(listener, config)?.handle(handle);
                tokio::spawn(server.serve(service));
            }
            None => {
                let server = axum_server::from_tcp(listener)?.handle(handle);
                tokio::spawn(server.serve(service));
            }
        }
    }
    for handle in &handles {
        handle.listening().await.context("a listener did not start")?;
    }
    Ok(Running { hello, shared, handles })
}

/// The first tenant and workspace.
fn first(seed: Option<u64>, urls: [&String; 5]) -> Hello {
    let mut dice = match seed {
        Some(seed) => fastrand::Rng::with_seed(seed),
        None => fastrand::Rng::new(),
    };
    let mut guid = || uuid::Builder::from_random_bytes(dice.u128(..).to_be_bytes()).into_uuid().to_string();
    let [login, graph, arm, ingestion, control] = urls.map(Clone::clone);
    Hello {
        login,
        graph,
        arm,
        ingestion,
        control,
        tenant_id: guid(),
        subscription_id: guid(),
        resource_group: "soc-rg".to_owned(),
        workspace_name: "soc-ws".to_owned(),
    }
}

/// `lockstep emulator`: starts, says where, and runs until it is interrupted.
pub async fn run(args: Args) -> anyhow::Result<()> {
    use std::io::Write as _;
    let running = start(&args).await?;
    {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&running.hello)?)?;
        out.flush()?;
    }
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    running.stop().await;
    Ok(())
}
