//! Which of a tenant's incidents a route is for.

use crate::domain::model::{DefenderSays, DefenderSeverity, DefenderStatus};

/// What an incident must show to be copied. An empty list asks for nothing; of a list, one is enough; all lists must be
/// content. Text is compared without case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these severities.
    pub severities: Vec<DefenderSeverity>,
    /// One of these states.
    pub statuses: Vec<DefenderStatus>,
    /// An alert of one of these products.
    pub products: Vec<String>,
    /// One of these custom or system tags.
    pub tags: Vec<String>,
    /// One of these texts in the title.
    pub titles: Vec<String>,
    /// A device of one of these device groups.
    pub device_groups: Vec<String>,
    /// What becomes of a twin whose incident no longer shows it.
    pub otherwise: Unmatched,
}

/// What becomes of a twin whose incident stops matching.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmatched {
    /// It goes on being kept in step: it was worth copying once.
    #[default]
    Keep,
    /// Nothing is written to it any more, until the incident matches again.
    Leave,
    /// It is closed as undetermined with a sentence that says why, and then left.
    Close,
}

impl Filter {
    /// Whether it is content with every incident that the other is content with, as far as the lists tell.
    pub fn covers(&self, other: &Filter) -> bool {
        let lower = |text: &String| text.trim().to_lowercase();
        let texts = |wide: &[String], narrow: &[String]| {
            let wide: Vec<String> = wide.iter().map(lower).collect();
            wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(|one| wide.contains(&lower(one))))
        };
        // A title holds whatever a text that it holds does.
        let titles = self.titles.is_empty()
            || (!other.titles.is_empty()
                && other
                    .titles
                    .iter()
                    .all(|long| self.titles.iter().any(|short| lower(long).contains(&lower(short)))));
        titles
            && within(&self.severities, &other.severities)
            && within(&self.statuses, &other.statuses)
            && texts(&self.products, &other.products)
            && texts(&self.tags, &other.tags)
            && texts(&self.device_groups, &other.device_groups)
    }

    /// Why an incident is not for the route; `None` if it is.
    pub fn refuses(&self, says: &DefenderSays) -> Option<String> {
        let Self { severities, statuses, products, tags, titles, device_groups, otherwise: _ } = self;
        if !severities.is_empty() && !severities.contains(&says.severity) {
            return Some(format!("its severity is {}", says.severity));
        }
        if !statuses.is_empty() && !statuses.contains(&says.status) {
            return Some(format!("its status is {}", says.status));
        }
        let lower = |text: &String| text.trim().to_lowercase();
        let title = says.title.as_ref().map(lower).unwrap_or_default();
        if !titles.is_empty() && !titles.iter().any(|wanted| title.contains(&lower(wanted))) {
            return Some("its title holds none of the texts".to_owned());
        }
        let facts = says.facts.clone().unwrap_or_default();
        let shows = |wanted: &[String], shown: &[String]| {
            wanted.is_empty() || shown.iter().any(|one| wanted.iter().any(|w| lower(w) == lower(one)))
        };
        let all_tags: Vec<String> = says.tags.iter().chain(&facts.system_tags).cloned().collect();
        if !shows(tags, &all_tags) {
            return Some("it has none of the tags".to_owned());
        }
        if !shows(products, &facts.products) {
            return Some("none of its alerts is of the products".to_owned());
        }
        if !shows(device_groups, &facts.device_groups) {
            return Some("none of its devices is in the device groups".to_owned());
        }
        None
    }
}

/// Whether a list asks for no more than another does. An empty one asks for nothing.
fn within<T: PartialEq>(wide: &[T], narrow: &[T]) -> bool {
    wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(|one| wide.contains(one)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::model::{DefenderClassification, DefenderDetermination, Facts};

    fn says() -> DefenderSays {
        DefenderSays {
            title: Some("Ransomware on Finance".into()),
            description: None,
            severity: DefenderSeverity::High,
            status: DefenderStatus::Active,
            owner: None,
            classification: DefenderClassification::Unknown,
            determination: DefenderDetermination::Unknown,
            resolving_comment: None,
            tags: vec!["VIP".into()],
            facts: Some(Facts {
                products: vec!["Microsoft Defender for Endpoint".into()],
                device_groups: vec!["Servers".into()],
                system_tags: vec!["Defender Experts".into()],
                ..Facts::default()
            }),
        }
    }

    #[test]
    fn every_list_must_be_content_and_one_of_each_is_enough() {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let all = Filter {
            severities: vec![DefenderSeverity::Medium, DefenderSeverity::High],
            statuses: vec![DefenderStatus::Active],
            products: list(&["microsoft defender for endpoint"]),
            tags: list(&["defender experts", "none"]),
            titles: list(&["RANSOM"]),
            device_groups: list(&["servers"]),
            otherwise: Unmatched::Keep,
        };
        assert_eq!(all.refuses(&says()), None);
        let refused = [
            Filter { severities: vec![DefenderSeverity::Low], ..all.clone() },
            Filter { statuses: vec![DefenderStatus::Resolved], ..all.clone() },
            Filter { products: list(&["Microsoft Defender for Identity"]), ..all.clone() },
            Filter { tags: list(&["vi"]), ..all.clone() },
            Filter { titles: list(&["phishing"]), ..all.clone() },
            Filter { device_groups: list(&["Workstations"]), ..all.clone() },
        ];
        for filter in refused {
            assert!(filter.refuses(&says()).is_some(), "{filter:?}");
        }
        assert_eq!(Filter::default().refuses(&says()), None);
    }

    #[test]
    fn a_filter_covers_those_that_ask_for_more() {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let all = Filter::default();
        let high = Filter { severities: vec![DefenderSeverity::High], ..Filter::default() };
        let severe = Filter {
            severities: vec![DefenderSeverity::High, DefenderSeverity::Medium],
            ..Filter::default()
        };
        let tagged = Filter { tags: list(&["vip"]), ..high.clone() };
        let ransom = Filter { titles: list(&["Ransomware on"]), ..Filter::default() };
        let ware = Filter { titles: list(&["ransomware"]), ..Filter::default() };
        for (wide, narrow) in [
            (&all, &all),
            (&all, &high),
            (&high, &high),
            (&severe, &high),
            (&high, &tagged),
            (&severe, &tagged),
            (&ware, &ransom),
        ] {
            assert!(wide.covers(narrow), "{wide:?} {narrow:?}");
        }
        for (wide, narrow) in [
            (&high, &all),
            (&high, &severe),
            (&tagged, &high),
            (&ransom, &ware),
            (&ware, &all),
            (&tagged, &all),
        ] {
            assert!(!wide.covers(narrow), "{wide:?} {narrow:?}");
        }
    }
}
