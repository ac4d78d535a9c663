//! The edge over real sockets: limits of connections, bytes and time, and TLS with certificates that change.

use std::path::Path;
use std::sync::Arc;

use axum::http::StatusCode;
use lockstep::config::Tls;
use lockstep::http::tls::Certificates;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::*;

const BOUND: Duration = Duration::from_secs(10);

/// A running service, its address, and what ends it.
struct Running {
    address: std::net::SocketAddr,
    certificates: Option<Arc<Certificates>>,
    stop: CancellationToken,
}

impl Running {
    async fn start(change: impl FnOnce(&mut lockstep::config::Server)) -> Self {
        let mut house = House::new();
        change(&mut house.config.server);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let front = house.front();
        let certificates = front.certificates().cloned();
        tokio::spawn(lockstep::http::serve(listener, front, stop.clone()));
        Self { address, certificates, stop }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Sends a request on a connection that is then done with, and reads the whole answer.
async fn exchange(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    request: &str,
) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A peer that cuts TLS off without a goodbye is no matter once the answer has come.
    let _ = timeout(BOUND, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    String::from_utf8(answer).unwrap()
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n")
}

fn post(path: &str, body: &str, more: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n{more}\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn a_source_that_has_had_its_share_is_told_when_to_come_again() {
    let running = Running::start(|server| {
        (server.limits.requests_per_second, server.limits.burst) = (1, 2);
        server.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let knock = async |from: &str| {
        let from = format!("x-forwarded-for: {from}\r\nx-request-id: my-own\r\n");
        exchange(running.connect().await, &post("/notify/graph", r#"{"value":[]}"#, &from)).await
    };
    // More than the two that are there, and one a second: the third or fourth is refused however slow this machine is
    // as long as four take less than two seconds.
    let answers = [
        knock("192.0.2.1").await,
        knock("192.0.2.1").await,
        knock("192.0.2.1").await,
        knock("192.0.2.1").await,
    ];
    assert!(answers[0].starts_with("HTTP/1.1 202 "), "{}", answers[0]);
    let refused =
        answers.iter().find(|answer| answer.starts_with("HTTP/1.1 429 ")).expect("one was too many");
    for line in ["retry-after: 1\r\n", "x-content-type-options: nosniff\r\n", "x-request-id: my-own\r\n"] {
        assert!(refused.contains(line), "{line} is not in {refused}");
    }
    assert!(knock("192.0.2.2").await.starts_with("HTTP/1.1 202 "), "another sender behind the same proxy");
    for _ in 0..5 {
        assert!(exchange(running.connect().await, &get("/healthz", "")).await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_or_never_ends_holds_nobody_up() {
    let running = Running::start(|server| server.limits.connections = 8).await;
    // The answer may be lost when the service hangs up on what is still coming; that there is no other counts.
    let mut stream = running.connect().await;
    let large = get("/healthz", &format!("x-large: {}\r\n", "x".repeat(1 << 20)));
    let _ = stream.write_all(large.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(BOUND, stream.read_to_end(&mut answer)).await.expect("it hangs up");
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
    let answer = exchange(running.connect().await, &get("/healthz", &many)).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    // Heads that never end take places, and the others go on.
    let mut slow = Vec::new();
    for _ in 0..7 {
        let mut stream = running.connect().await;
        stream.write_all(b"POST /notify/graph HTTP/1.1\r\nhost:").await.unwrap();
        slow.push(stream);
    }
    let answer = exchange(running.connect().await, &get("/healthz", "")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn one_source_cannot_take_every_connection() {
    let running = Running::start(|server| server.limits.connections_per_source = 2).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = running.connect().await;
        // An answer proves that the service has the connection.
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        held.push(stream);
    }
    let mut third = running.connect().await;
    let mut nothing = Vec::new();
    let read = timeout(BOUND, third.read_to_end(&mut nothing)).await.expect("it is closed at once");
    assert!(read.is_err() || nothing.is_empty());
    held.clear();
    // The places come free as soon as the service sees the ends of the others.
    let answered = timeout(BOUND, async {
        loop {
            let mut stream = running.connect().await;
            let mut answer = String::new();
            let _ = stream.write_all(get("/healthz", "").as_bytes()).await;
            let _ = stream.read_to_string(&mut answer).await;
            if answer.starts_with("HTTP/1.1 200 ") {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    answered.await.expect("a place comes free");
}

#[tokio::test]
async fn bodies_in_flight_are_bounded_and_the_bytes_come_back() {
    let running = Running::start(|server| server.limits.body_mib = 4).await;
    let open = async || {
        let mut stream = running.connect().await;
        let head =
            "POST /notify/graph HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3145729\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; 3 << 20]).await.unwrap();
        stream
    };
    // Two bodies of 3 MiB, each held back at its last byte: there is room for one of them.
    let (mut one, mut other) = (open().await, open().await);
    let (mut first, mut second) = ([0; 12], [0; 12]);
    let refused = timeout(BOUND, async {
        tokio::select! {
            _ = one.read_exact(&mut first) => (first, other),
            _ = other.read_exact(&mut second) => (second, one),
        }
    });
    let (answer, mut stays) = refused.await.expect("one of them is refused while both wait");
    assert_eq!(&answer, b"HTTP/1.1 429");
    stays.write_all(b"x").await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(BOUND, stays.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.starts_with(b"HTTP/1.1 400 "), "the other was read to its end");
    let mut again = open().await;
    again.write_all(b"x").await.unwrap();
    let mut answer = [0; 12];
    timeout(BOUND, again.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400", "its bytes came back");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_is_no_reason_to_be_late() {
    let house = House::new();
    *house.store.mood.lock().unwrap() = Mood::Stuck;
    let event = |number: usize| {
        format!(
            r#"{{"tenantId":"{TENANT}","subscriptionId":"{number}","clientState":"{STATE}","lifecycleEvent":"missed"}}"#
        )
    };
    let many: Vec<String> = (0..50).map(event).collect();
    let body = format!(r#"{{"value":[{}]}}"#, many.join(","));
    let began = tokio::time::Instant::now();
    let answer = house.graph("/notify/graph/lifecycle", &body).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers["retry-after"], "5");
    assert!(began.elapsed() < Duration::from_millis(2_600), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_place_waits_briefly() {
    let house = House::new();
    *house.store.mood.lock().unwrap() = Mood::Stuck;
    let began = tokio::time::Instant::now();
    let mut senders = tokio::task::JoinSet::new();
    // 512 are inside, with a store that is stuck; as many wait a moment; the rest is told at once.
    for _ in 0..1_100 {
        let router = house.router.clone();
        senders.spawn(async move {
            let request = Request::post("/notify/graph").body(Body::from(ONE)).unwrap();
            (router.oneshot(request).await.unwrap().status().as_u16(), tokio::time::Instant::now())
        });
    }
    let answers = senders.join_all().await;
    let mut by_status = BTreeMap::new();
    for (status, at) in answers {
        assert!(at - began < Duration::from_millis(2_600), "{status} came too late");
        *by_status.entry(status).or_insert(0) += 1;
    }
    assert_eq!(by_status, BTreeMap::from([(429, 588), (503, 512)]));
}

const ONE: &str = r#"{"value":[{"tenantId":"84bd8158-6d4d-4958-8b9f-9d6445542f95","subscriptionId":"s",
    "clientState":"secretClientValue-of-contoso","resource":"security/incidents/29"}]}"#;

// ---- TLS ----

/// An authority with what it signs, on files.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn sign(&self, usage: ExtendedKeyUsagePurpose) -> (String, KeyPair) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key)
    }

    /// A server's certificate and key in a folder.
    fn issue(&self, folder: &Path) -> Tls {
        let (certificate, key) = self.sign(ExtendedKeyUsagePurpose::ServerAuth);
        let tls = Tls {
            certificate_file: folder.join("tls.crt"),
            key_file: folder.join("tls.key"),
            client_ca_file: None,
            client_required: true,
        };
        std::fs::write(&tls.certificate_file, certificate).unwrap();
        std::fs::write(&tls.key_file, key.serialize_pem()).unwrap();
        tls
    }

    /// A sender that trusts this authority, with a certificate signed by another or none.
    fn sender(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        own: Option<&Authority>,
    ) -> TlsConnector {
        use rustls::pki_types::pem::PemObject as _;
        let der = |pem: &str| rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der(&self.pem)).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let (certificate, key) = authority.sign(ExtendedKeyUsagePurpose::ClientAuth);
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
                builder.with_client_auth_cert(vec![der(&certificate)], key).unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }
}

const BOTH: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12, &rustls::version::TLS13];

/// The status of one request over TLS, or `None` when no answer came about.
async fn asked(running: &Running, sender: &TlsConnector) -> Option<String> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = timeout(BOUND, sender.connect(name, running.connect().await)).await.unwrap().ok()?;
    // With TLS 1.3 a sender hears only now that its certificate was not liked.
    stream.write_all(get("/healthz", "").as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    let _ = timeout(BOUND, stream.read_to_end(&mut answer)).await.unwrap();
    Some(String::from_utf8(answer).unwrap().get(9..12)?.to_owned())
}

#[tokio::test]
async fn tls_is_spoken_in_both_versions_and_a_silent_handshake_holds_nobody_up() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let running = Running::start(|server| server.tls = Some(authority.issue(folder.path()))).await;
    let _silent = running.connect().await;
    for version in BOTH {
        let sender = authority.sender(&[version], None);
        assert_eq!(asked(&running, &sender).await.as_deref(), Some("200"), "{version:?}");
    }
    assert_eq!(asked(&running, &Authority::new().sender(BOTH, None)).await, None, "another authority");
    let plain = exchange(running.connect().await, &get("/healthz", "")).await;
    assert!(!plain.contains("200"), "no plain answers beside TLS");
}

#[tokio::test]
async fn senders_certificates_are_asked_for_as_configured() {
    let (folder, authority, theirs) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let client_ca = folder.path().join("clients.crt");
    std::fs::write(&client_ca, &theirs.pem).unwrap();
    for (required, without) in [(true, None), (false, Some("200"))] {
        let running = Running::start(|server| {
            let tls = authority.issue(folder.path());
            server.tls =
                Some(Tls { client_ca_file: Some(client_ca.clone()), client_required: required, ..tls });
        })
        .await;
        for version in BOTH {
            let ask = async |own| asked(&running, &authority.sender(&[version], own)).await;
            assert_eq!(ask(Some(&theirs)).await.as_deref(), Some("200"), "required {required}");
            assert_eq!(ask(Some(&authority)).await, None, "another authority's, required {required}");
            assert_eq!(ask(None).await.as_deref(), without, "required {required}");
        }
    }
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_and_a_broken_one_is_not() {
    let (folder, old, new) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let tls = old.issue(folder.path());
    let running = Running::start(|server| server.tls = Some(tls.clone())).await;
    let certificates = running.certificates.clone().unwrap();
    let ask = async |authority: &Authority| asked(&running, &authority.sender(BOTH, None)).await.is_some();
    assert_eq!(certificates.refresh(), Ok(false), "nothing has changed");
    assert!(ask(&old).await);

    std::fs::write(&tls.certificate_file, "-----BEGIN CERTIFICATE-----\nno\n").unwrap();
    assert!(certificates.refresh().unwrap_err().contains("tls.crt"));
    assert_eq!(certificates.refresh(), Ok(false), "the same trouble is told once");
    assert!(ask(&old).await, "the old one stays at work");
    std::fs::remove_file(&tls.key_file).unwrap();
    assert!(certificates.refresh().unwrap_err().contains("tls.key"));

    new.issue(folder.path());
    assert_eq!(certificates.refresh(), Ok(true));
    assert!(ask(&new).await && !ask(&old).await, "new connections get the new one");
}
