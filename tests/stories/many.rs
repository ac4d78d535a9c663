//! Many to many: two tenants into one workspace, one tenant into two workspaces, equal incident ids in both tenants.

use serde_json::json;

use crate::stage::{PATIENCE, Scene, Stage, fresh};
use crate::support::emulator::{Analyst, Place, State};
use crate::support::in_step;

/// What one route's two ends say: of a shared workspace, only the twins that lead back to the route's own tenant.
fn of_route(state: &State, tenant: &Place, workspace: &Place) -> Vec<String> {
    let mut seen = state.clone();
    let key = {
        let workspaces = seen.0["workspaces"].as_object().expect("the state is an object of owners");
        let wanted = workspace.workspace();
        workspaces.keys().find(|key| key.eq_ignore_ascii_case(&wanted)).expect("it is known").clone()
    };
    let twins = seen.0["workspaces"][&key]["incidents"].as_array_mut().expect("a list");
    let mark = format!("tid={}", tenant.tenant_id);
    twins.retain(|twin| twin["properties"]["description"].as_str().is_some_and(|text| text.contains(&mark)));
    let crossed = Place { tenant_id: tenant.tenant_id.clone(), ..workspace.clone() };
    in_step::differences(&seen, &crossed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_ids_do_not_collide() {
    let more = "[[routes]]\nname = \"crossed\"\ntenant = \"tenant-1\"\nworkspace = \"workspace-0\"\n";
    let stage = Stage::set(Scene { places: 2, more, ..Scene::default() }).await;
    let (zero, one) = (stage.places[0].clone(), stage.places[1].clone());
    let routes = [(&zero, &zero), (&one, &one), (&one, &zero)];
    let in_step = async |what: &str| {
        stage
            .until_within(what, PATIENCE, |state| {
                let found: Vec<String> = routes
                    .iter()
                    .flat_map(|(tenant, workspace)| {
                        let found = of_route(state, tenant, workspace);
                        found
                            .into_iter()
                            .map(move |found| format!("to {}: {found}", workspace.workspace_name))
                    })
                    .collect();
                let shared = state.sentinel(&zero).len();
                match found.is_empty() && shared == 4 {
                    true => Ok(()),
                    false => Err(format!("{shared} incidents in the shared workspace\n{}", found.join("\n"))),
                }
            })
            .await
    };
    for id in ["7", "8"] {
        for (number, place) in stage.places.iter().enumerate() {
            let mut incident = fresh(&format!("Incident {id} of tenant {number}"));
            incident["id"] = json!(id);
            stage.emulator.raise(place, incident).await;
        }
    }
    in_step("every incident has a twin at the end of each of its routes").await;

    // An edit in one tenant reaches both of its twins and not the other tenant's.
    stage.analysts[0].edit_defender("7", json!({"severity": "low"})).await;
    stage.analysts[1].edit_defender("7", json!({"severity": "high"})).await;
    in_step("edits in Defender cross").await;

    // An edit in the shared workspace goes to the tenant it belongs to, and from there to its other twin.
    let state = stage.emulator.state().await;
    let twin = |title: &str| -> String {
        let found = state.sentinel(&zero).iter().find(|twin| twin["properties"]["title"] == title);
        found.expect("it has a twin there")["name"].as_str().expect("ARM names its incidents").to_owned()
    };
    let (first, second) = (twin("Incident 8 of tenant 0"), twin("Incident 8 of tenant 1"));
    let soc: &Analyst = &stage.analysts[0];
    soc.edit_sentinel(&first, json!({"owner": {"userPrincipalName": "omar@contoso.com"}})).await;
    soc.edit_sentinel(&second, json!({"status": "Active", "severity": "Informational"})).await;
    stage
        .until("both tenants hear of their own", |state| {
            let (own, other) = (state.incident(&zero, "8"), state.incident(&one, "8"));
            let (own, other) = (own.ok_or("gone")?, other.ok_or("gone")?);
            let heard = own["assignedTo"] == "omar@contoso.com" && other["status"] == "inProgress";
            if heard { Ok(()) } else { Err(format!("{} {}", own["assignedTo"], other["status"])) }
        })
        .await;
    in_step("edits in the shared workspace cross").await;
    let state = stage.emulator.state().await;
    assert_eq!(state.incident(&zero, "8").expect("it is there")["status"], "active", "not its neighbour's");
    assert_eq!(
        state.incident(&one, "8").expect("it is there")["assignedTo"],
        json!(null),
        "not its neighbour's"
    );
    stage.ends_but(|_| true).await;
    assert_eq!(stage.parked(), [], "nothing is parked");
    in_step("and it stays so").await;
}
