//! Where a store lives while a case runs: a file in a temporary folder, or a schema of a PostgreSQL database. A place
//! can be opened again and again, as after a restart or by a second process.

use std::sync::Arc;

use lockstep::adapters::store;
use lockstep::ports::Store;
use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;
use uuid::Uuid;

/// The variable that names the PostgreSQL server to test with.
pub(crate) const POSTGRES: &str = "LOCKSTEP_TEST_POSTGRES";

#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) url: String,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Sqlite { folder: Arc<TempDir> },
    Postgres { server: String, schema: String },
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        let folder = Arc::new(TempDir::new().expect("a temporary folder"));
        let url = format!("sqlite://{}", folder.path().join("lockstep.db").display());
        Self { url, kind: Kind::Sqlite { folder } }
    }

    pub(crate) async fn postgres() -> Self {
        let server =
            std::env::var(POSTGRES).unwrap_or_else(|_| panic!("{POSTGRES} is not set; run scripts/test"));
        let schema = format!("lockstep_{}", Uuid::new_v4().simple());
        let mut connection = connect(&server).await;
        connection
            .execute(sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}")))
            .await
            .expect("a new schema");
        let and = if server.contains('?') { '&' } else { '?' };
        // The schema names the connections too, so that a case can find its own.
        let url = format!("{server}{and}application_name={schema}&options[search_path]={schema}");
        Self { url, kind: Kind::Postgres { server, schema } }
    }

    pub(crate) async fn open(&self) -> Arc<dyn Store> {
        store::open(&self.url).await.expect("the store opens")
    }

    pub(crate) fn file(&self) -> std::path::PathBuf {
        match &self.kind {
            Kind::Sqlite { folder } => folder.path().join("lockstep.db"),
            Kind::Postgres { .. } => panic!("no file"),
        }
    }

    /// From now on the engine itself refuses a queue row of this id, in the middle of a group.
    pub(crate) async fn refuse(&self, id: &str) {
        match &self.kind {
            Kind::Sqlite { .. } => rusqlite::Connection::open(self.file())
                .and_then(|connection| {
                    connection.execute_batch(&format!(
                        "CREATE TRIGGER refuse BEFORE INSERT ON jobs WHEN new.native_id = '{id}'
                         BEGIN SELECT RAISE(ABORT, 'refused'); END"
                    ))
                })
                .expect("a trigger"),
            Kind::Postgres { .. } => {
                let check = format!("ALTER TABLE jobs ADD CHECK (native_id <> '{id}')");
                self.beside().await.execute(sqlx::AssertSqlSafe(check)).await.expect("a constraint");
            }
        }
    }

    /// A connection of the case's own, beside the store's.
    pub(crate) async fn beside(&self) -> PgConnection {
        let mut options: sqlx::postgres::PgConnectOptions = self.url.parse().expect("a URL");
        options = options.application_name("beside");
        PgConnection::connect_with(&options).await.expect("a connection")
    }

    pub(crate) fn schema(&self) -> &str {
        match &self.kind {
            Kind::Postgres { schema, .. } => schema,
            Kind::Sqlite { .. } => panic!("no schema"),
        }
    }

    /// A fresh place of the same kind. To be forgotten by whoever asked for it.
    pub(crate) async fn another(&self) -> Self {
        match &self.kind {
            Kind::Sqlite { .. } => Self::sqlite(),
            Kind::Postgres { .. } => Self::postgres().await,
        }
    }

    /// Leaves nothing behind on a server.
    pub(crate) async fn forget(&self) {
        if let Kind::Postgres { server, schema } = &self.kind {
            let drop = sqlx::AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"));
            connect(server).await.execute(drop).await.expect("the schema goes");
        }
    }

    /// Runs a case, and cleans up also when it fails.
    pub(crate) async fn run<F: Future<Output = ()> + Send + 'static>(self, case: impl FnOnce(Place) -> F) {
        let outcome = tokio::spawn(case(self.clone())).await;
        self.forget().await;
        if let Err(error) = outcome {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

async fn connect(server: &str) -> PgConnection {
    PgConnection::connect(server).await.unwrap_or_else(|error| panic!("{POSTGRES} does not answer: {error}"))
}
