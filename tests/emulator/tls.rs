//! Microsoft's SDKs refuse plain HTTP: with a folder given, every listener speaks TLS under a CA that is written there.

use lockstep::emulator::Args;
use reqwest::Method;
use serde_json::Value;

use crate::desk::Desk;

#[tokio::test]
async fn every_listener_speaks_tls_that_the_written_ca_proves() {
    let folder = tempfile::tempdir().expect("a folder");
    let args = Args { tls: Some(folder.path().to_owned()), ..Args::default() };
    let desk = Desk::start(args, reqwest::Client::builder()).await;
    let pem = std::fs::read(folder.path().join("ca.pem")).expect("ca.pem is written");
    let ca = reqwest::Certificate::from_pem(&pem).expect("a certificate");
    let trusting = reqwest::Client::builder().no_proxy().tls_certs_only([ca]).build().expect("a client");

    for service in ["login", "graph", "arm", "ingestion", "control"] {
        let url = desk.url(service);
        assert!(url.starts_with("https://"), "{url}");
        trusting.get(url).send().await.unwrap_or_else(|error| panic!("{service}: {error:?}"));
        let port = url.rsplit(':').next().expect("a port").trim_end_matches('/');
        let named = format!("https://localhost:{port}/");
        trusting.get(&named).send().await.unwrap_or_else(|error| panic!("{named}: {error:?}"));
    }
    let stranger = desk.try_call(Method::GET, desk.url("graph"), &[], Value::Null).await;
    assert!(stranger.is_err(), "a client that does not know the CA trusts the certificate");

    let state: Value = trusting
        .get(format!("{}/state", desk.url("control")))
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON");
    assert!(state["tenants"][desk.tenant()].is_object(), "{state}");
    desk.running.stop().await;
}
