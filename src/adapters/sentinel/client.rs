//! `ports::Sentinel` over ARM: three operations and a look for `lockstep check`.

use std::sync::Arc;

use async_trait::async_trait;
use reqwest::Method;
use time::OffsetDateTime;
use url::Url;

use super::wire;
use crate::adapters::call::{Call, Caller, Missing, Service, Shared};
use crate::adapters::entra::TokenSource;
use crate::adapters::lenient;
use crate::domain::digest::Bookmark;
use crate::domain::failure::Failure;
use crate::domain::model::{SentinelComment, SentinelIncident, SentinelWrite, Side};
use crate::ports::{Page, Sentinel, Spent};

/// The version to ask for unless the configuration says otherwise. A newer one may be missing from a national cloud.
pub const DEFAULT_API_VERSION: &str = "2025-09-01";

/// Records per page; the service allows 1,000, but a page should be read well within the timeout.
const PAGE: u32 = 200;
/// The longest page that the service gives. For whoever reads the whole list and counts the calls.
const LONGEST_PAGE: usize = 1_000;

/// The version whose bookmarks have entity mappings.
const BOOKMARK_VERSION: &str = "2025-07-01-preview";

/// Comments per page; an incident holds at most 100 (`sentinel.md` §12).
const COMMENTS_PAGE: u32 = 100;
/// More pages than 100 comments fill, even one by one.
const COMMENT_PAGES: u32 = 110;

static ARM: Service = Service {
    side: Side::Sentinel,
    name: "Azure Resource Manager",
    headers: &[],
    id_header: "x-ms-client-request-id",
    // `ResourceNotFound` speaks of the workspace, and so do the codes for groups and subscriptions; whatever else a
    // 404 says, the list can tell.
    missing: |code| match code {
        Some("NotFound" | "IncidentNotFound") => Missing::Incident,
        _ => Missing::Unclear,
    },
    speaks_of_role: |error| {
        let code = error.code.as_deref().unwrap_or_default();
        matches!(code, "AuthorizationFailed" | "LinkedAuthorizationFailed")
    },
    cure: "give the application Microsoft Sentinel Responder on the workspace's resource group; it can take ten \
           minutes to arrive",
    not_there: "check subscription_id, resource_group and workspace_name, and that Sentinel is enabled there",
};

/// Where a workspace is.
#[derive(Clone, Debug)]
pub struct SentinelSettings {
    /// The cloud's ARM host, or what stands in for it.
    pub arm_url: Url,
    /// The cloud's token scope for ARM, whatever the host.
    pub scope: String,
    /// The subscription's id.
    pub subscription_id: String,
    /// The resource group's name.
    pub resource_group: String,
    /// The workspace's name.
    pub workspace_name: String,
    /// `DEFAULT_API_VERSION`, or what this cloud has.
    pub api_version: String,
}

impl SentinelSettings {
    /// The workspace's resource id in lower case, as links and subjects know it.
    pub fn workspace(&self) -> String {
        crate::domain::model::workspace_id(&self.subscription_id, &self.resource_group, &self.workspace_name)
    }
}

/// One workspace's incidents.
pub struct SentinelClient {
    incidents: String,
    base: Url,
    api_version: String,
    workspace_name: String,
    caller: Caller,
}

impl SentinelClient {
    /// Calls nothing yet.
    pub fn new(settings: SentinelSettings, tokens: Arc<TokenSource>, shared: Shared) -> Self {
        let workspace = settings.workspace();
        let SentinelSettings { arm_url, scope, subscription_id, resource_group, workspace_name, api_version } =
            settings;
        // A name that no path can hold becomes one that no workspace has, and the service says so.
        let part = |name: &str| lenient::segment(name).unwrap_or_else(|| "_".to_owned());
        let path = format!(
            "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.OperationalInsights/workspaces/{}\
             /providers/Microsoft.SecurityInsights/incidents",
            part(&subscription_id),
            part(&resource_group),
            part(&workspace_name)
        );
        let incidents = format!("{}{path}", arm_url.as_str().trim_end_matches('/'));
        let api_version = part(&api_version);
        let mut probe = arm_url.clone();
        probe.set_path(&format!("{}{path}", arm_url.path().trim_end_matches('/')));
        probe.set_query(Some(&format!("api-version={api_version}&$top=1")));
        let quota = shared.quotas.arm(&subscription_id, tokens.tenant_id(), tokens.client_id());
        let caller = Caller::new(&ARM, workspace, scope, probe, tokens, quota, shared);
        Self { incidents, base: arm_url, api_version, workspace_name, caller }
    }

    /// Reads one short page: a line for `lockstep check --connect`.
    pub async fn check(&self) -> Result<String, Failure> {
        let url = self.url(&format!("{}?api-version={}&$top=1", self.incidents, self.api_version))?;
        let answer = self.caller.send(Call { list: true, ..Call::read("check", url) }).await?;
        let page = wire::page(&answer.body).map_err(|why| self.caller.unreadable(false, &why))?;
        let seen = if page.records.is_empty() && page.unreadable.is_empty() {
            "has no incidents yet"
        } else {
            "is readable"
        };
        Ok(format!(
            "Azure Resource Manager answered at {}: workspace {} {seen}",
            self.base.origin().ascii_serialization(),
            self.workspace_name
        ))
    }

    fn one(&self, name: &str) -> Result<Url, Failure> {
        let segment = lenient::segment(name).ok_or_else(|| {
            self.caller
                .never("odd-id", format!("no incident can be called {:?}", lenient::sentence(name, 80)))
        })?;
        self.url(&format!("{}/{segment}?api-version={}", self.incidents, self.api_version))
    }

    /// Something that hangs on an incident. `what` is ours, or a UUID.
    fn below(&self, name: &str, what: &str) -> Result<Url, Failure> {
        let mut url = self.one(name)?;
        url.set_path(&format!("{}/{what}", url.path()));
        Ok(url)
    }

    fn url(&self, text: &str) -> Result<Url, Failure> {
        Url::parse(text)
            .map_err(|error| self.caller.never("bad-url", format!("arm_url makes no URL: {error}")))
    }
}

#[async_trait]
impl Sentinel for SentinelClient {
    fn spent(&self) -> Spent {
        self.caller.spent()
    }

    async fn incident(&self, name: &str) -> Result<Option<SentinelIncident>, Failure> {
        let answer = self.caller.send(Call::read("incident-get", self.one(name)?)).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        wire::incident(&answer.body).map(Some).map_err(|why| self.caller.unreadable(false, &why))
    }

    async fn changed_since(
        &self,
        since: OffsetDateTime,
        next: Option<&str>,
    ) -> Result<Page<SentinelIncident>, Failure> {
        let url = match next {
            Some(next) => self.caller.next_page(&self.base, next)?,
            None => self.url(&format!(
                "{}?api-version={}&$filter=properties/lastModifiedTimeUtc%20ge%20{}\
                 &$orderby=properties/lastModifiedTimeUtc%20asc&$top={PAGE}",
                self.incidents,
                self.api_version,
                lenient::filter_instant(since)
            ))?,
        };
        let answer = self.caller.send(Call::poll("incident-list", url)).await?;
        wire::page(&answer.body).map_err(|why| self.caller.unreadable(false, &why))
    }

    async fn everything(&self, next: Option<&str>) -> Result<Page<SentinelIncident>, Failure> {
        let from = |filter: &str| {
            self.url(&format!(
                "{}?api-version={}{filter}&$orderby=properties/lastModifiedTimeUtc%20asc&$top={LONGEST_PAGE}",
                self.incidents, self.api_version
            ))
        };
        let url = match next {
            Some(next) => self.caller.next_page(&self.base, next)?,
            None => from("")?,
        };
        let answer = self.caller.send(Call::poll("incident-list", url)).await?;
        let mut page = wire::page(&answer.body).map_err(|why| self.caller.unreadable(false, &why))?;
        // A whole list is also said to hold no more than a page (`sentinel.md` §11): where a full one names no
        // other, go on by time. What carries the last time comes twice.
        let (first, last) = (page.records.first(), page.records.last());
        if let (None, true, Some(first), Some(last)) =
            (&page.next, page.records.len() + page.unreadable.len() >= LONGEST_PAGE, first, last)
            && first.modified < last.modified
        {
            let since = lenient::filter_instant(last.modified);
            let filter = format!("&$filter=properties/lastModifiedTimeUtc%20ge%20{since}");
            page.next = Some(from(&filter)?.to_string());
        }
        Ok(page)
    }

    async fn put(&self, name: &str, write: &SentinelWrite) -> Result<SentinelIncident, Failure> {
        let mut call = Call::write("incident-put", Method::PUT, self.one(name)?, wire::put(write));
        // No operation documents the header (`sentinel.md` §4): where it is heeded, a create that arrives late cannot
        // overwrite the twin; where it is not, the planner takes it back.
        call.only_new = write.etag.is_none();
        let answer = self.caller.send(call).await?;
        if answer.status == 404 {
            return Err(self.caller.status_failure(&answer, "there is no such incident to update"));
        }
        wire::incident(&answer.body).map_err(|why| self.caller.unreadable(true, &why))
    }

    async fn comments(&self, name: &str) -> Result<Vec<SentinelComment>, Failure> {
        let mut url = self.below(name, "comments")?;
        url.set_query(Some(&format!("api-version={}&$top={COMMENTS_PAGE}", self.api_version)));
        let mut comments = Vec::new();
        for _ in 0..COMMENT_PAGES {
            let answer = self.caller.send(Call::read("comment-list", url)).await?;
            if answer.status == 404 {
                return Ok(Vec::new());
            }
            let (page, next) =
                wire::comments(&answer.body).map_err(|why| self.caller.unreadable(false, &why))?;
            comments.extend(page);
            match next {
                None => return Ok(comments),
                Some(next) => url = self.caller.next_page(&self.base, &next)?,
            }
        }
        Err(self.caller.never("endless-list", "an incident's comments do not end".to_owned()))
    }

    async fn put_comment(&self, name: &str, id: &str, message: &str) -> Result<SentinelComment, Failure> {
        let url = self.below(name, &format!("comments/{id}"))?;
        let call = Call::write("comment-put", Method::PUT, url, wire::put_comment(message));
        let answer = self.caller.send(call).await?;
        if answer.status == 404 {
            return Err(self.caller.status_failure(&answer, "there is no such incident to comment on"));
        }
        wire::one_comment(&answer.body).map_err(|why| self.caller.unreadable(true, &why))
    }

    async fn put_bookmark(&self, name: &str, id: &str, bookmark: &Bookmark) -> Result<(), Failure> {
        let bookmarks = self.incidents.trim_end_matches("incidents");
        let path = format!("{bookmarks}bookmarks/{id}");
        let put = async |version: &str, mapped| {
            let url = self.url(&format!("{path}?api-version={version}"))?;
            let body = wire::put_bookmark(bookmark, mapped);
            self.caller.send(Call::write("bookmark-put", Method::PUT, url, body)).await
        };
        let url = self.url(&path)?;
        // Entity mappings are in preview: where that is refused, the bookmark goes without.
        let answer = match put(BOOKMARK_VERSION, true).await {
            Err(failure) if failure.code == "status-400" => put(&self.api_version, false).await?,
            answered => answered?,
        };
        if answer.status == 404 {
            return Err(self.caller.status_failure(&answer, "there is no place for a bookmark"));
        }
        let relation = self.below(name, &format!("relations/{id}"))?;
        let call = Call::write("relation-put", Method::PUT, relation, wire::put_relation(url.path()));
        match self.caller.send(call).await {
            Ok(answer) if answer.status == 404 => {
                Err(self.caller.status_failure(&answer, "there is no such incident to relate to"))
            }
            Ok(_) => Ok(()),
            Err(failure) => Err(failure),
        }
    }
}
