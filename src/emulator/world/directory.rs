//! Who is who: the people and groups of every tenant, as Graph's directory answers for them.

use serde_json::{Value, json};
use uuid::Uuid;

use super::defender::{Query, person};
use super::{Answer, Moment, Person, Refusal, Switch};

/// The behaviours of the directory that the reference leaves to the tenant.
pub const SWITCHES: &[Switch] = &[
    Switch {
        name: "unknownPeople",
        values: &["exist", "missing"],
        meaning: "whether everybody with an @ exists in the directory, or only those who were posted; Defender checks no \
                  owner against it (graph.md 8.1)",
    },
    Switch {
        name: "directoryRead",
        values: &["granted", "refused"],
        meaning: "whether applications may read people and groups, without which no owner is resolved to an object id \
                  (sentinel.md 6)",
    },
];

/// Somebody, or something, that was put into the directory.
#[derive(Clone, Debug)]
struct Posted {
    tenant_id: String,
    person: Person,
    mail: Option<String>,
}

#[derive(Clone, Debug)]
struct Group {
    tenant_id: String,
    id: String,
    display_name: String,
    mail: Option<String>,
}

/// The people and groups of all tenants.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    posted: Vec<Posted>,
    groups: Vec<Group>,
    /// By tenant: who was taken out, though everybody else exists.
    gone: Vec<(String, Person)>,
    /// By tenant: who was named in a token or looked up, so that the id finds them too.
    seen: Vec<(String, Person)>,
}

fn missing(id: &str) -> Refusal {
    let message = format!(
        "Resource '{id}' does not exist or one of its queried reference-property objects are not present."
    );
    Refusal::new(404, "Request_ResourceNotFound", message)
}

fn is(person: &Person, name: &str) -> bool {
    person.object_id.eq_ignore_ascii_case(name) || person.upn.eq_ignore_ascii_case(name)
}

impl Directory {
    /// The person behind a user principal name: as posted, else with an id derived from tenant and name.
    pub fn person(&self, tenant_id: &str, upn: &str) -> Person {
        let posted = self.posted.iter().find(|one| one.tenant_id == tenant_id && is(&one.person, upn));
        posted.map_or_else(|| person(tenant_id, upn), |posted| posted.person.clone())
    }

    /// Remembers somebody whose token was made or who was looked up.
    pub fn meet(&mut self, tenant_id: &str, person: &Person) {
        let one = (tenant_id.to_owned(), person.clone());
        if !self.seen.contains(&one) {
            self.seen.push(one);
        }
    }

    /// Puts somebody into the directory, in place of whoever had the name or the id.
    pub fn post_person(&mut self, tenant_id: &str, person: Person, mail: Option<String>) {
        self.forget(tenant_id, &person.upn);
        self.forget(tenant_id, &person.object_id);
        self.gone.retain(|(tenant, gone)| tenant != tenant_id || !is(gone, &person.upn));
        self.posted.push(Posted { tenant_id: tenant_id.to_owned(), person, mail });
    }

    /// Takes somebody out: name and id are not found any more.
    pub fn remove_person(&mut self, tenant_id: &str, upn: &str) -> Person {
        let gone = self.person(tenant_id, upn);
        self.forget(tenant_id, &gone.upn);
        self.gone.push((tenant_id.to_owned(), gone.clone()));
        gone
    }

    fn forget(&mut self, tenant_id: &str, name: &str) {
        self.posted.retain(|one| one.tenant_id != tenant_id || !is(&one.person, name));
        self.seen.retain(|(tenant, one)| tenant != tenant_id || !is(one, name));
    }

    /// Puts a group into the directory, and answers its id.
    pub fn post_group(
        &mut self,
        tenant_id: &str,
        id: Option<String>,
        display_name: &str,
        mail: Option<String>,
    ) -> String {
        let seed = format!("group:{tenant_id}:{}", display_name.to_lowercase());
        let id = id.unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_URL, seed.as_bytes()).to_string());
        self.groups.retain(|group| group.tenant_id != tenant_id || !group.id.eq_ignore_ascii_case(&id));
        let (tenant_id, display_name) = (tenant_id.to_owned(), display_name.to_owned());
        self.groups.push(Group { tenant_id, id: id.clone(), display_name, mail });
        id
    }

    /// `GET /users/{id or user principal name}`
    pub fn user(&mut self, id: &str, query: &Query, moment: &Moment<'_>) -> Answer {
        may_read(moment)?;
        let tenant = moment.caller.tenant_id.as_str();
        let posted = self.posted.iter().find(|one| one.tenant_id == tenant && is(&one.person, id));
        let (found, mail) = match posted {
            Some(posted) => (posted.person.clone(), posted.mail.clone()),
            None if moment.switches.is("unknownPeople", "missing") => return Err(missing(id)),
            None => {
                let own = |list: &[(String, Person)]| {
                    let found = list.iter().find(|(known, one)| known == tenant && is(one, id));
                    found.map(|(_, one)| one.clone())
                };
                if own(&self.gone).is_some() {
                    return Err(missing(id));
                }
                let found = own(&self.seen).or_else(|| id.contains('@').then(|| person(tenant, id)));
                let found = found.ok_or_else(|| missing(id))?;
                let mail = Some(found.upn.clone());
                self.meet(tenant, &found);
                (found, mail)
            }
        };
        let Person { object_id, upn, display_name } = found;
        let user = json!({
            "@odata.context": format!("{}/v1.0/$metadata#users/$entity", query.base),
            "id": object_id, "userPrincipalName": upn, "displayName": display_name, "mail": mail,
            "businessPhones": [], "givenName": null, "jobTitle": null, "mobilePhone": null,
            "officeLocation": null, "preferredLanguage": null, "surname": null,
        });
        Ok((200, selected(user, query)))
    }

    /// `GET /groups/{id}`
    pub fn group(&self, id: &str, query: &Query, moment: &Moment<'_>) -> Answer {
        may_read(moment)?;
        let tenant = &moment.caller.tenant_id;
        let found =
            self.groups.iter().find(|one| one.tenant_id == *tenant && one.id.eq_ignore_ascii_case(id));
        let Group { id, display_name, mail, .. } = found.ok_or_else(|| missing(id))?;
        let group = json!({
            "@odata.context": format!("{}/v1.0/$metadata#groups/$entity", query.base),
            "id": id, "displayName": display_name, "mail": mail, "mailEnabled": mail.is_some(),
            "securityEnabled": true, "groupTypes": [], "description": null,
        });
        Ok((200, selected(group, query)))
    }

    /// Who was put here or taken out, for `GET /state`.
    pub fn describe(&self) -> Value {
        let people = self.posted.iter().map(|Posted { tenant_id, person, mail }| {
            json!({
                "tenantId": tenant_id, "upn": person.upn, "objectId": person.object_id,
                "displayName": person.display_name, "mail": mail,
            })
        });
        let groups = self.groups.iter().map(|Group { tenant_id, id, display_name, mail }| {
            json!({"tenantId": tenant_id, "id": id, "displayName": display_name, "mail": mail})
        });
        let gone = self.gone.iter().map(|(tenant, one)| json!({"tenantId": tenant, "upn": one.upn}));
        json!({
            "people": people.collect::<Vec<_>>(), "groups": groups.collect::<Vec<_>>(),
            "gone": gone.collect::<Vec<_>>(),
        })
    }
}

fn may_read(moment: &Moment<'_>) -> Result<(), Refusal> {
    if moment.switches.is("directoryRead", "granted") {
        return Ok(());
    }
    let message = "Insufficient privileges to complete the operation.";
    Err(Refusal::new(403, "Authorization_RequestDenied", message))
}

/// The members that `$select` names, or all.
fn selected(mut object: Value, query: &Query) -> Value {
    let named = query.options.iter().find(|(name, _)| name == "$select").map(|(_, value)| value);
    if let (Some(named), Some(members)) = (named, object.as_object_mut()) {
        let wanted: Vec<&str> = named.split(',').map(str::trim).collect();
        members.retain(|name, _| {
            name.starts_with('@') || wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(name))
        });
    }
    object
}
