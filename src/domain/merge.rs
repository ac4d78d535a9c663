//! The three-way judgement of one value and the three-way merge of a set. It knows nothing of fields.

use std::collections::BTreeSet;

/// Defender's and Sentinel's value of the same thing, each in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair<D, S> {
    /// Defender's.
    pub defender: D,
    /// Sentinel's.
    pub sentinel: S,
}

/// Who moved since both agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nobody, or both to the same meaning.
    Settled,
    /// Only Defender.
    DefenderMoved,
    /// Only Sentinel.
    SentinelMoved,
    /// Both, to different meanings.
    Clash,
}

/// `known` and `now` hold each side in its own words: the mapping is lossy, so the two sides are compared through it
/// (`same`) only to find out that nothing needs copying, never to find out who moved.
pub fn judge<D: Eq, S: Eq>(known: &Pair<D, S>, now: &Pair<D, S>, same: impl Fn(&D, &S) -> bool) -> Judgement {
    match (now.defender != known.defender, now.sentinel != known.sentinel) {
        (false, false) => Judgement::Settled,
        _ if same(&now.defender, &now.sentinel) => Judgement::Settled,
        (true, false) => Judgement::DefenderMoved,
        (false, true) => Judgement::SentinelMoved,
        (true, true) => Judgement::Clash,
    }
}

/// A set of names compared without case.
pub type Names = BTreeSet<String>;

/// What each side's set should become.
///
/// Member by member: a member that one side added or removed is added to or removed from the other; a member that
/// nobody touched stays as it is on each side. Without `known` the two are united. When both sides touched the same
/// member in opposite ways (only possible if they differed when last agreed), it is kept on both: a tag too many is
/// seen, a tag lost is not.
pub fn merge_names(
    known: Option<&Pair<Names, Names>>,
    now: &Pair<Names, Names>,
    to_sentinel: bool,
    to_defender: bool,
) -> Pair<Names, Names> {
    let mut goal = now.clone();
    let everything: BTreeSet<&String> = now
        .defender
        .iter()
        .chain(&now.sentinel)
        .chain(known.iter().flat_map(|pair| pair.defender.iter().chain(&pair.sentinel)))
        .collect();
    for name in everything {
        let (in_defender, in_sentinel) = (now.defender.contains(name), now.sentinel.contains(name));
        if in_defender == in_sentinel {
            continue;
        }
        let (defender_moved, sentinel_moved) = match known {
            None => (in_defender, in_sentinel),
            Some(pair) => {
                (in_defender != pair.defender.contains(name), in_sentinel != pair.sentinel.contains(name))
            }
        };
        let keep = match (defender_moved, sentinel_moved) {
            (false, false) => continue,
            (true, false) if to_sentinel => in_defender,
            (false, true) if to_defender => in_sentinel,
            (true, true) if to_sentinel && to_defender => true,
            (true, true) if to_sentinel => in_defender,
            (true, true) if to_defender => in_sentinel,
            _ => continue,
        };
        if to_sentinel && in_sentinel != keep {
            set(&mut goal.sentinel, name, keep);
        }
        if to_defender && in_defender != keep {
            set(&mut goal.defender, name, keep);
        }
    }
    goal
}

/// The members that both sides touched in opposite ways: whatever becomes of them, one side's move is lost.
pub fn contested(known: &Pair<Names, Names>, now: &Pair<Names, Names>) -> Names {
    let differ = now.defender.symmetric_difference(&now.sentinel);
    let moved = |name: &&String| {
        now.defender.contains(*name) != known.defender.contains(*name)
            && now.sentinel.contains(*name) != known.sentinel.contains(*name)
    };
    differ.filter(moved).cloned().collect()
}

fn set(names: &mut Names, name: &str, present: bool) {
    if present {
        names.insert(name.to_owned());
    } else {
        names.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every world of one scalar with three values on each side, where `same` is equality.
    #[test]
    fn judge_over_every_world() {
        for known in 0..9u8 {
            for now in 0..9u8 {
                let known = Pair { defender: known / 3, sentinel: known % 3 };
                let now = Pair { defender: now / 3, sentinel: now % 3 };
                let verdict = judge(&known, &now, |d, s| d == s);
                let moved = (known.defender != now.defender, known.sentinel != now.sentinel);
                let expected = match moved {
                    (false, false) => Judgement::Settled,
                    _ if now.defender == now.sentinel => Judgement::Settled,
                    (true, false) => Judgement::DefenderMoved,
                    (false, true) => Judgement::SentinelMoved,
                    (true, true) => Judgement::Clash,
                };
                assert_eq!(verdict, expected, "{known:?} {now:?}");
            }
        }
    }

    fn names(bits: u8) -> Names {
        (0..2).filter(|i| bits & (1 << i) != 0).map(|i| format!("t{i}")).collect()
    }

    /// Every world of two tags: what one side alone changed reaches the other, and merging twice changes nothing.
    #[test]
    fn sets_merge_member_by_member_over_every_world() {
        for world in 0..256u32 {
            let part = |n: u32| names(((world >> (2 * n)) & 3) as u8);
            let known = Pair { defender: part(0), sentinel: part(1) };
            let now = Pair { defender: part(2), sentinel: part(3) };
            let goal = merge_names(Some(&known), &now, true, true);
            assert_eq!(merge_names(Some(&goal), &goal, true, true), goal, "planning twice, world {world}");
            for name in ["t0", "t1"] {
                let has = |set: &Names| set.contains(name);
                let defender_moved = has(&known.defender) != has(&now.defender);
                let sentinel_moved = has(&known.sentinel) != has(&now.sentinel);
                if defender_moved && !sentinel_moved {
                    assert_eq!(has(&goal.sentinel), has(&now.defender), "world {world} {name}");
                }
                if sentinel_moved && !defender_moved {
                    assert_eq!(has(&goal.defender), has(&now.sentinel), "world {world} {name}");
                }
                if !defender_moved && !sentinel_moved {
                    assert_eq!(has(&goal.defender), has(&now.defender), "world {world} {name}");
                    assert_eq!(has(&goal.sentinel), has(&now.sentinel), "world {world} {name}");
                }
            }
            let one_way = merge_names(Some(&known), &now, true, false);
            assert_eq!(one_way.defender, now.defender, "one way never writes back, world {world}");
            let united = merge_names(None, &now, true, true);
            assert_eq!(united.defender, united.sentinel, "without known they are united, world {world}");
            assert!(united.defender.is_superset(&now.defender) && united.defender.is_superset(&now.sentinel));
        }
    }
}
