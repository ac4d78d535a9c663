//! Connections: how many there may be, for how long one may be silent, and how they end. Written here, on hyper, since
//! `axum::serve` has no limits and axum-server none per source; plain and TLS connections are the same afterwards.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::edge::Front;

/// How long requests that are being handled may take after shutdown has begun.
const FAREWELL: Duration = Duration::from_secs(15);
/// The largest head of a request; a larger one is answered 431.
const MOST_HEAD_BYTES: usize = 64 << 10;
/// How long after a failure to accept the next try comes: file descriptors have run out, and some must close first.
const ACCEPT_AGAIN: Duration = Duration::from_millis(250);

/// How long a connection may keep us waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For the first byte of a request. Longer than the 60 s after which the usual proxies close their idle connections:
    /// who closes first must not be the one to whom a request may be on its way.
    pub(super) idle: Duration,
    /// For the rest of a request's head.
    pub(super) head: Duration,
    /// For room to write an answer.
    pub(super) answer: Duration,
    /// For the TLS handshake.
    pub(super) handshake: Duration,
}

impl Patience {
    pub(super) const USUAL: Self = Self {
        idle: Duration::from_secs(75),
        head: Duration::from_secs(10),
        answer: Duration::from_secs(10),
        handshake: Duration::from_secs(5),
    };
}

/// Serves until `shutdown`, then lets requests end, but not for ever.
pub async fn serve(listener: TcpListener, front: Front, shutdown: CancellationToken) -> io::Result<()> {
    let front = Arc::new(front);
    let connections = TaskTracker::new();
    if let Some(certificates) = front.certificates() {
        connections.spawn(certificates.clone().keep_fresh(shutdown.clone()));
    }
    loop {
        let next = async {
            let place = front.place().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            next = next => next,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
            Err(error) if broke_off(&error) => continue,
            Err(error) => {
                tracing::warn!("a connection could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Some(open) = front.open(peer) else { continue };
        // Answers are small: waiting to fill a packet would only delay them. Not vital, so a refusal is no matter.
        let _ = stream.set_nodelay(true);
        let (front, shutdown) = (front.clone(), shutdown.clone());
        connections.spawn(async move {
            let _held = (place, open);
            connection(front, stream, peer, shutdown).await;
        });
    }
    drop(listener);
    connections.close();
    if timeout(FAREWELL, connections.wait()).await.is_err() {
        tracing::warn!("requests were cut off: they took longer than {FAREWELL:?} after shutdown had begun");
    }
    Ok(())
}

/// The sender was gone before we came to it; nothing is wrong here.
fn broke_off(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(front: Arc<Front>, stream: TcpStream, peer: IpAddr, shutdown: CancellationToken) {
    let Some(certificates) = front.certificates() else {
        return requests(front, stream, peer, shutdown).await;
    };
    let acceptor = TlsAcceptor::from(certificates.current());
    match timeout(front.patience().handshake, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => requests(front, stream, peer, shutdown).await,
        Ok(Err(error)) => {
            front.count("handshake-failed");
            tracing::debug!(%peer, "no TLS connection came about: {error}");
        }
        Err(_) => front.count("handshake-slow"),
    }
}

async fn requests<S>(front: Arc<Front>, stream: S, peer: IpAddr, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let line = Arc::new(Line::default());
    let io = TokioIo::new(Guarded::new(stream, line.clone(), front.patience()));
    let service = service_fn(|request| {
        let (front, line) = (front.clone(), line.clone());
        async move {
            line.busy.store(true, Ordering::Relaxed);
            let answer = front.answer(peer, request).await;
            line.served.fetch_add(1, Ordering::Relaxed);
            line.busy.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut connection =
        pin!(http1::Builder::new().max_buf_size(MOST_HEAD_BYTES).serve_connection(io, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%peer, "a connection broke off: {error}");
    }
}

/// What the two ends of a connection know of each other: both run in one task.
#[derive(Default)]
struct Line {
    /// A request is being handled; its frame limits its time.
    busy: AtomicBool,
    /// How many requests have been handled.
    served: AtomicU32,
}

/// A stream that gives up on a sender who is too slow. hyper's own limit is one for idle connections and for heads, and
/// sets a timer for every request; here a timer is only set for a connection that is waited for, and seldom moved.
struct Guarded<S> {
    stream: S,
    line: Arc<Line>,
    patience: Patience,
    /// How many requests had been handled when `since` was set.
    served: u32,
    /// Since when the next request is waited for, or since its first byte.
    since: Instant,
    head_began: bool,
    /// Since when there is no room to write.
    stuck: Option<Instant>,
    read_timer: Option<Pin<Box<Sleep>>>,
    write_timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Guarded<S> {
    fn new(stream: S, line: Arc<Line>, patience: Patience) -> Self {
        Self {
            stream,
            line,
            patience,
            served: 0,
            since: Instant::now(),
            head_began: false,
            stuck: None,
            read_timer: None,
            write_timer: None,
        }
    }

    /// After a read that found nothing: whether that has gone on for too long.
    fn waited(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.line.busy.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        self.note_served();
        let patience = if self.head_began { self.patience.head } else { self.patience.idle };
        ready!(expired(&mut self.read_timer, self.since + patience, context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn note_served(&mut self) {
        let served = self.line.served.load(Ordering::Relaxed);
        if served != self.served {
            (self.served, self.since, self.head_began) = (served, Instant::now(), false);
        }
    }

    /// After a write: whether there has been no room for too long.
    fn written<T>(&mut self, outcome: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stuck = None;
            return outcome;
        }
        let since = *self.stuck.get_or_insert_with(Instant::now);
        ready!(expired(&mut self.write_timer, since + self.patience.answer, context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Ready when it is later than `deadline`. A timer that would ring too early is let ring, and set anew then: that is
/// rarer than requests are.
fn expired(timer: &mut Option<Pin<Box<Sleep>>>, deadline: Instant, context: &mut Context<'_>) -> Poll<()> {
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
    if timer.deadline() > deadline {
        timer.as_mut().reset(deadline);
    }
    loop {
        ready!(timer.as_mut().poll(context));
        if timer.deadline() >= deadline {
            return Poll::Ready(());
        }
        timer.as_mut().reset(deadline);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Pending => this.waited(context),
            Poll::Ready(Ok(())) if buffer.filled().len() > before => {
                if !this.line.busy.load(Ordering::Relaxed) {
                    this.note_served();
                    if !this.head_began {
                        (this.head_began, this.since) = (true, Instant::now());
                    }
                }
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.written(outcome, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
        self.written(outcome, context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    fn guarded(size: usize) -> (Guarded<DuplexStream>, DuplexStream, Arc<Line>) {
        let (ours, theirs) = tokio::io::duplex(size);
        let line = Arc::new(Line::default());
        (Guarded::new(ours, line.clone(), Patience::USUAL), theirs, line)
    }

    async fn silence(guarded: &mut Guarded<DuplexStream>) -> Duration {
        let began = Instant::now();
        let error = guarded.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        began.elapsed()
    }

    fn about(found: Duration, wanted: Duration) {
        let off = found.abs_diff(wanted);
        assert!(off <= Duration::from_millis(5), "{found:?} is not {wanted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_borne_for_so_long_and_a_slow_head_for_less() {
        let (mut idle, _theirs, _) = guarded(64);
        about(silence(&mut idle).await, Patience::USUAL.idle);

        // A byte every second: the head as a whole has its time.
        let (mut slow, mut theirs, _) = guarded(64);
        let drip = tokio::spawn(async move {
            while theirs.write_u8(b'x').await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let began = Instant::now();
        let error = loop {
            if let Err(error) = slow.read_u8().await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        about(began.elapsed(), Patience::USUAL.head);
        drop(slow);
        drip.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_request_is_handled_the_line_may_be_silent_and_afterwards_time_begins_anew() {
        let (mut guarded, mut theirs, line) = guarded(64);
        theirs.write_u8(b'x').await.unwrap();
        guarded.read_u8().await.unwrap();
        line.busy.store(true, Ordering::Relaxed);
        let handled = Duration::from_secs(600);
        assert!(timeout(handled, guarded.read_u8()).await.is_err(), "no end while it is busy");
        line.served.fetch_add(1, Ordering::Relaxed);
        line.busy.store(false, Ordering::Relaxed);
        about(silence(&mut guarded).await, Patience::USUAL.idle);
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_no_answer_is_let_go() {
        let (mut guarded, _theirs, _) = guarded(4);
        let began = Instant::now();
        let error = guarded.write_all(b"an answer").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        about(began.elapsed(), Patience::USUAL.answer);
    }
}
