//! What people said, and where it must be found: each comment exactly once on each side, whatever was lost, doubled or
//! cut off; edits told once; the history of what was merged away on the winner, once; every alert in the digest.

use lockstep::domain::model::Side;
use time::OffsetDateTime;

use crate::house::Hides;

/// One comment of a person, with what it was edited to.
#[derive(Clone, Debug)]
struct Said {
    side: Side,
    incident: String,
    /// The id that it has in Sentinel.
    comment: Option<String>,
    /// Its texts, oldest first.
    texts: Vec<String>,
    at: OffsetDateTime,
    edited: OffsetDateTime,
}

/// The ledger of what was said.
#[derive(Debug, Default)]
pub(crate) struct Sayings {
    said: Vec<Said>,
    /// Who was merged into whom, and when.
    merges: Vec<(String, String, OffsetDateTime)>,
}

/// The comments of one incident on both sides.
pub(crate) struct Heard {
    pub(crate) defender: Vec<String>,
    pub(crate) sentinel: Vec<String>,
}

fn count(texts: &[String], text: &str) -> usize {
    texts.iter().map(|heard| heard.matches(text).count()).sum()
}

impl Sayings {
    pub(crate) fn said(
        &mut self,
        side: Side,
        incident: &str,
        comment: Option<&str>,
        text: &str,
        at: OffsetDateTime,
    ) {
        let known = self.said.iter_mut().find(|said| {
            comment.is_some() && said.incident == incident && said.comment.as_deref() == comment
        });
        match known {
            Some(said) => {
                said.texts.push(text.to_owned());
                said.edited = at;
            }
            None => self.said.push(Said {
                side,
                incident: incident.to_owned(),
                comment: comment.map(str::to_owned),
                texts: vec![text.to_owned()],
                at,
                edited: at,
            }),
        }
    }

    /// Whether a comment was ever edited: some of that is for the sweep to find.
    pub(crate) fn edited(&self) -> bool {
        self.said.iter().any(|said| said.texts.len() > 1)
    }

    pub(crate) fn merged(&mut self, from: &str, into: &str, at: OffsetDateTime) {
        self.merges.push((from.to_owned(), into.to_owned(), at));
    }

    /// What was said and never edited is there once on the other side, where it showed.
    pub(crate) fn heard_at_once(&self, id: &str, heard: &Heard, hides: Hides) -> Result<(), String> {
        let own: Vec<&Said> = self.said.iter().filter(|said| said.incident == id).collect();
        // An edit beside it may hide it.
        if own.iter().any(|said| said.texts.len() > 1) {
            return Ok(());
        }
        for said in &own {
            let (hidden, texts) = match said.side {
                Side::Defender => (hides.defender, &heard.sentinel),
                Side::Sentinel => (hides.sentinel, &heard.defender),
            };
            let times = own.iter().filter(|other| other.texts == said.texts).count();
            let found = count(texts, &said.texts[0]);
            if !hidden && found != times {
                return Err(format!(
                    "{id}: {:?} was said {times} times, in {}, and is found {found} times on the other side before \
                     any sweep",
                    said.texts[0], said.side
                ));
            }
        }
        Ok(())
    }

    /// Everything that was said on an incident is there once on each side, and so is what it inherited.
    pub(crate) fn heard(
        &self,
        id: &str,
        heard: &Heard,
        still_merged: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        let own: Vec<&Said> = self.said.iter().filter(|said| said.incident == id).collect();
        for said in &own {
            let last = said.texts.last().expect("it was said");
            let times = own.iter().filter(|other| other.texts.contains(last)).count();
            for (side, texts) in [(Side::Defender, &heard.defender), (Side::Sentinel, &heard.sentinel)] {
                let found = count(texts, last);
                if found != times {
                    return Err(format!(
                        "{id}: {last:?} was said {times} times, in {}, and is found {found} times in {side}",
                        said.side
                    ));
                }
                // What was overtaken before anybody looked may be missing; it is never told twice.
                let earlier = said.texts.iter().filter(|text| *text != last);
                if let Some(text) = earlier.clone().find(|text| count(texts, text) > 1) {
                    return Err(format!("{id}: {text:?} is found several times in {side}"));
                }
            }
        }
        for (from, _, at) in self.merges.iter().filter(|(from, into, _)| into == id && still_merged(from)) {
            let theirs: Vec<&Said> = self.said.iter().filter(|said| said.incident == *from).collect();
            for said in &theirs {
                let times = theirs.iter().filter(|other| other.texts == said.texts).count();
                let (before, unchanged) = (said.at < *at, said.edited < *at);
                for (side, texts) in [(Side::Defender, &heard.defender), (Side::Sentinel, &heard.sentinel)] {
                    let found: usize = said.texts.iter().map(|text| count(texts, text)).sum();
                    let last = count(texts, said.texts.last().expect("it was said"));
                    if found > times || (before && found == 0) || (before && unchanged && last == 0) {
                        return Err(format!(
                            "{id}: {:?}, said on {from} before it was merged into this one, is found {found} times in \
                             {side}",
                            said.texts
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}
