//! A database of one's own in a real PostgreSQL server.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// Names the server: a URL of a database in which others may be created. `scripts/with-postgres` sets it.
pub(crate) const VARIABLE: &str = "LOCKSTEP_TEST_POSTGRES";

/// A new, empty database.
pub(crate) struct Database {
    server: String,
    name: String,
    /// Its URL.
    pub(crate) url: String,
}

impl Database {
    /// Creates one, or `None` where no server is named.
    pub(crate) async fn create() -> Option<Self> {
        let server = std::env::var(VARIABLE).ok().filter(|server| !server.is_empty())?;
        let name = format!("outside_{}", uuid::Uuid::new_v4().simple());
        execute(&server, format!("CREATE DATABASE {name}")).await;
        let mut url = url::Url::parse(&server).unwrap_or_else(|error| panic!("{VARIABLE}: {error}"));
        url.set_path(&name);
        Some(Self { server, name, url: url.into() })
    }

    /// Drops it, whoever is still connected.
    pub(crate) async fn drop_now(self) {
        execute(&self.server, format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name)).await;
    }

    /// The process id of the server, whose children serve the connections; `None` where it runs on another machine.
    pub(crate) async fn server_process(&self) -> Option<u32> {
        let mut connection = PgConnection::connect(&self.server).await.ok()?;
        let id: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await.ok()?;
        // The serving process ends with the connection, so its parent is looked up first.
        let parent = parent_of(u32::try_from(id).ok()?)?;
        connection.close().await.ok();
        Some(parent)
    }
}

async fn execute(server: &str, statement: String) {
    let run = async {
        let mut connection = PgConnection::connect(server).await?;
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
        connection.close().await
    };
    run.await.unwrap_or_else(|error: sqlx::Error| panic!("the server that {VARIABLE} names: {error}"));
}

/// The parent of a PostgreSQL process of this machine; `None` where the id belongs to something else (the server is
/// elsewhere).
fn parent_of(id: u32) -> Option<u32> {
    let name = std::fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
    if !name.starts_with("postgres") {
        return None;
    }
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}
