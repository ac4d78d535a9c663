//! `ports::Subscriptions` over Graph's `/subscriptions` (`graph.md` §13.2). A refusal here says nothing of incidents, so
//! it closes no gate; and the service counts these calls apart from all others.

use std::sync::Arc;

use async_trait::async_trait;
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};
use url::Url;

use super::client::GraphSettings;
use crate::adapters::call::{Call, Caller, Missing, Service, Shared};
use crate::adapters::entra::TokenSource;
use crate::adapters::lenient::{self, Unreadable};
use crate::domain::failure::Failure;
use crate::domain::model::Side;
use crate::domain::plan::format_instant;
use crate::ports::{
    EncryptionCertificate, Subscription, SubscriptionChange, SubscriptionOrder, Subscriptions,
};

/// More pages than any application has subscriptions for; a list that is longer goes round in circles.
const MOST_PAGES: usize = 200;

static SUBSCRIPTIONS: Service = Service {
    side: Side::Defender,
    name: "Graph's subscriptions",
    headers: &[],
    id_header: "client-request-id",
    missing: |_| Missing::Incident,
    speaks_of_role: |_| false,
    cure: "give the application the permission that the resource needs",
    not_there: "check graph_url and cloud",
};

/// One application's subscriptions in one tenant.
pub struct GraphSubscriptions {
    base: Url,
    list: String,
    caller: Caller,
}

impl GraphSubscriptions {
    /// Calls nothing yet.
    pub fn new(settings: GraphSettings, tokens: Arc<TokenSource>, shared: Shared) -> Self {
        let GraphSettings { graph_url, scope, tenant_id, alerts: _ } = settings;
        let list = format!("{}/v1.0/subscriptions", graph_url.as_str().trim_end_matches('/'));
        let quota = shared.quotas.graph(&format!("subscriptions {tenant_id}"), tokens.client_id());
        let watched = format!("{tenant_id}/subscriptions");
        let caller = Caller::new(&SUBSCRIPTIONS, watched, scope, graph_url.clone(), tokens, quota, shared);
        Self { base: graph_url, list, caller }
    }

    fn url(&self, text: &str) -> Result<Url, Failure> {
        Url::parse(text)
            .map_err(|error| self.caller.never("bad-url", format!("graph_url makes no URL: {error}")))
    }

    fn one(&self, id: &str, action: &str) -> Result<Url, Failure> {
        let segment = lenient::segment(id).ok_or_else(|| {
            self.caller.never("odd-id", "no subscription can be called like that".to_owned())
        })?;
        self.url(&format!("{}/{segment}{action}", self.list))
    }

    fn read(&self, body: &[u8]) -> Result<Subscription, Failure> {
        let garbled = |why| self.caller.unreadable(true, &Unreadable::Garbled(why));
        subscription(&lenient::object(&lenient::text_of(body)).map_err(garbled)?).map_err(garbled)
    }
}

#[async_trait]
impl Subscriptions for GraphSubscriptions {
    async fn list(&self) -> Result<Vec<Subscription>, Failure> {
        let mut all = Vec::new();
        let mut url = self.url(&self.list)?;
        for _ in 0..MOST_PAGES {
            let call = Call { list: true, ..Call::read("subscription-list", url) };
            let answer = self.caller.alone(&call).await?;
            if !answer.is_success() {
                return Err(self.caller.refusal(&call, &answer));
            }
            let garbled = |why| self.caller.unreadable(false, &Unreadable::Garbled(why));
            let page = lenient::page(&answer.body, "@odata.nextLink").map_err(garbled)?;
            for record in &page.records {
                // One that cannot be read is not ours: ours have an id and an end.
                let read = lenient::object(record.get()).and_then(|object| subscription(&object));
                all.extend(read.ok());
            }
            match page.next {
                Some(next) => url = self.caller.next_page(&self.base, &next)?,
                None => return Ok(all),
            }
        }
        Err(self.caller.never("endless-list", "the list of subscriptions has no end".to_owned()))
    }

    async fn create(&self, order: &SubscriptionOrder) -> Result<Subscription, Failure> {
        let url = self.url(&self.list)?;
        let call = Call::write("subscription-create", Method::POST, url, order_body(order));
        let answer = self.caller.alone(&call).await?;
        match answer.is_success() {
            true => self.read(&answer.body),
            false => Err(self.caller.refusal(&call, &answer)),
        }
    }

    async fn change(&self, id: &str, change: &SubscriptionChange) -> Result<Option<Subscription>, Failure> {
        let url = self.one(id, "")?;
        let call = Call::write("subscription-update", Method::PATCH, url, change_body(change));
        let answer = self.caller.alone(&call).await?;
        match answer.status {
            404 | 410 => Ok(None),
            _ if answer.is_success() => self.read(&answer.body).map(Some),
            _ => Err(self.caller.refusal(&call, &answer)),
        }
    }

    async fn reauthorize(&self, id: &str) -> Result<bool, Failure> {
        let url = self.one(id, "/reauthorize")?;
        let call = Call::write("subscription-reauthorize", Method::POST, url, Vec::new());
        let answer = self.caller.alone(&call).await?;
        match answer.status {
            404 | 410 => Ok(false),
            _ if answer.is_success() => Ok(true),
            _ => Err(self.caller.refusal(&call, &answer)),
        }
    }

    async fn end(&self, id: &str) -> Result<(), Failure> {
        let call = Call::write("subscription-delete", Method::DELETE, self.one(id, "")?, Vec::new());
        let answer = self.caller.alone(&call).await?;
        match answer.status {
            404 | 410 => Ok(()),
            _ if answer.is_success() => Ok(()),
            _ => Err(self.caller.refusal(&call, &answer)),
        }
    }
}

fn subscription(object: &Map<String, Value>) -> Result<Subscription, String> {
    let text = |member: &str| lenient::text(object, member);
    Ok(Subscription {
        id: text("id").filter(|id| !id.is_empty()).ok_or("no id")?,
        resource: text("resource").unwrap_or_default(),
        notification_url: text("notificationUrl").unwrap_or_default(),
        expires: lenient::instant(object, "expirationDateTime").ok_or("no expirationDateTime")?,
    })
}

fn put_certificate(body: &mut Value, certificate: Option<&EncryptionCertificate>) {
    if let Some(EncryptionCertificate { id, certificate }) = certificate {
        body["encryptionCertificate"] = json!(certificate);
        body["encryptionCertificateId"] = json!(id);
    }
}

fn order_body(order: &SubscriptionOrder) -> Vec<u8> {
    let mut body = json!({
        "changeType": order.change_types,
        "notificationUrl": order.notification_url,
        "lifecycleNotificationUrl": order.lifecycle_url,
        "resource": order.resource,
        "expirationDateTime": format_instant(order.expires),
        "clientState": order.client_state.expose_secret(),
        "latestSupportedTlsVersion": "v1_2",
    });
    if order.certificate.is_some() {
        body["includeResourceData"] = json!(true);
        put_certificate(&mut body, order.certificate.as_ref());
    }
    body.to_string().into_bytes()
}

fn change_body(change: &SubscriptionChange) -> Vec<u8> {
    let mut body = json!({});
    if let Some(expires) = change.expires {
        body["expirationDateTime"] = json!(format_instant(expires));
    }
    put_certificate(&mut body, change.certificate.as_ref());
    body.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn json(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_published_answers_are_read_and_the_published_requests_are_written() {
        let made = json(include_str!("../../../tests/fixtures/notices/subscription-create.response.json"));
        let read = subscription(&made).unwrap();
        assert_eq!(read.id, "7f105c7d-2dc5-4530-97cd-4e7ae6534c07");
        assert_eq!(read.expires, datetime!(2016-11-20 18:23:45.9356913 UTC));
        let list = json(include_str!("../../../tests/fixtures/notices/subscription-list.response.json"));
        assert!(subscription(list["value"][0].as_object().unwrap()).is_ok());
        // Graph's sample of a rich one shows no id; nobody could renew it.
        let rich =
            json(include_str!("../../../tests/fixtures/notices/subscription-create-rich.response.json"));
        assert!(subscription(&rich).is_err());

        let certificate = EncryptionCertificate { id: "{customId}".into(), certificate: "{base64}".into() };
        let order = SubscriptionOrder {
            resource: "/teams/{id}/channels/{id}/messages".into(),
            change_types: "created,updated".into(),
            notification_url: "https://webhook.azurewebsites.net/api/resourceNotifications".into(),
            lifecycle_url: "https://webhook.azurewebsites.net/api/lifecycle".into(),
            expires: datetime!(2019-09-19 11:00 UTC),
            client_state: "{secretClientState}".to_owned().into(),
            certificate: Some(certificate.clone()),
        };
        let members = |body: &[u8]| -> Vec<String> {
            let mut names: Vec<String> = json(std::str::from_utf8(body).unwrap()).keys().cloned().collect();
            names.sort();
            names
        };
        let published =
            include_str!("../../../tests/fixtures/notices/subscription-create-rich.request.json").as_bytes();
        let mut wanted = members(published);
        wanted.extend(["lifecycleNotificationUrl".to_owned(), "latestSupportedTlsVersion".to_owned()]);
        wanted.sort();
        assert_eq!(members(&order_body(&order)), wanted);
        let change = SubscriptionChange {
            expires: Some(datetime!(2026-03-22 11:00 UTC)),
            certificate: Some(certificate),
        };
        let published =
            include_str!("../../../tests/fixtures/notices/subscription-rotate-certificate.request.json");
        assert_eq!(members(&change_body(&change)), members(published.as_bytes()));
    }
}
