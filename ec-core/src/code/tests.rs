//! Which losses a code survives, counted against what any code of its shape could, and what repairs read.

use super::*;
use proptest::prelude::*;

fn code(text: &str) -> LinearCode {
    LinearCode::new(text.parse().unwrap())
}

fn without(total: usize, lost: u32) -> Vec<(usize, u32)> {
    (0..total)
        .filter(|i| lost >> i & 1 == 0)
        .map(|i| (i, 1))
        .collect()
}

/// Whether information theory allows a code of k data shards, l groups and g global parities to decode this loss: each group
/// has one equation of its own, and the g - f global ones left must do for the rest.
fn allowed(k: usize, l: usize, g: usize, lost: u32) -> bool {
    let of = |shard: usize| (lost >> shard & 1) as usize;
    let group_len = k / l;
    let beyond_groups: usize = (0..l)
        .map(|group| {
            let data: usize = (group * group_len..(group + 1) * group_len).map(of).sum();
            (data + of(k + group)).saturating_sub(1)
        })
        .sum();
    let globals: usize = (k + l..k + l + g).map(of).sum();
    beyond_groups + globals <= g
}

#[test]
fn lrcs_of_few_globals_decode_all_that_can_be() {
    let shapes = [
        (12, 2, 2),
        (12, 3, 2),
        (4, 2, 1),
        (4, 2, 2),
        (6, 3, 2),
        (10, 5, 2),
        (12, 1, 2),
        (15, 1, 2),
        (14, 2, 1),
        (9, 3, 1),
    ];
    for (k, l, g) in if cfg!(miri) { &shapes[2..3] } else { &shapes[..] }
        .iter()
        .copied()
    {
        let code = LinearCode::new(Scheme::lrc(k, l, g).unwrap());
        let total = k + l + g;
        let mut counts = vec![(0, 0); total + 1];
        for lost in 0..1u32 << total {
            let decodable = code
                .is_decodable(without(total, lost).into_iter().map(|(i, _)| i))
                .unwrap();
            assert_eq!(
                decodable,
                allowed(k, l, g, lost),
                "{} without {lost:b}",
                code.scheme()
            );
            let (of, all) = &mut counts[lost.count_ones() as usize];
            *all += 1;
            *of += usize::from(decodable);
        }
        println!(
            "{}: decodable of all, by losses: {:?}",
            code.scheme(),
            &counts[..=g + l]
        );
        assert_eq!(counts[g + 1].0, counts[g + 1].1);
        if (k, l, g) == (12, 2, 2) {
            assert_eq!(counts[3..5], [(560, 560), (1568, 1820)]);
        }
    }
}

#[test]
fn other_lrcs_survive_every_loss_of_one_more_than_the_globals() {
    // Many globals, and groups too long for the subspaces.
    let shapes = [(6, 2, 3), (8, 2, 4), (9, 3, 3), (6, 3, 6), (32, 2, 2), (40, 2, 1)];
    for (k, l, g) in if cfg!(miri) { &shapes[..1] } else { &shapes[..] }
        .iter()
        .copied()
    {
        let code = LinearCode::new(Scheme::lrc(k, l, g).unwrap());
        let total = k + l + g;
        let mut lost: Vec<usize> = (0..=g).collect();
        loop {
            let kept = (0..total).filter(|i| !lost.contains(i));
            assert!(
                code.is_decodable(kept).unwrap(),
                "{} without {lost:?}",
                code.scheme()
            );
            // The next combination.
            let Some(i) = (0..=g).rev().find(|&i| lost[i] < total - 1 - (g - i)) else {
                break;
            };
            let next = lost[i] + 1;
            (i..=g).for_each(|j| lost[j] = next + j - i);
        }
    }
}

#[test]
fn the_widest_lrcs() {
    for (k, l, g) in [(221, 17, 2), (240, 12, 3), (252, 1, 2), (168, 84, 3)] {
        if cfg!(miri) {
            break;
        }
        let code = LinearCode::new(Scheme::lrc(k, l, g).unwrap());
        let total = k + l + g;
        let mut state = 7u64;
        for _ in 0..20 {
            let mut lost = BTreeSet::new();
            while lost.len() <= g {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                lost.insert((state >> 33) as usize % total);
            }
            let kept = (0..total).filter(|i| !lost.contains(i));
            assert!(
                code.is_decodable(kept).unwrap(),
                "{} without {lost:?}",
                code.scheme()
            );
        }
    }
}

#[test]
fn one_loss_reads_a_group_or_k() {
    let reads = |text: &str, lost: usize| {
        let code = code(text);
        let sources = without(code.scheme().total_shards(), 1 << lost);
        code.recipe(&[lost], &sources).unwrap()
    };
    for lost in 0..14 {
        let recipe = reads("lrc(12,2,2)", lost);
        assert_eq!((recipe.sources.len(), recipe.cost), (6, 6), "shard {lost}");
        assert_eq!(recipe.coefficients, [1; 6], "a local repair is an exclusive or");
    }
    for global in [14, 15] {
        assert_eq!(reads("lrc(12,2,2)", global).sources.len(), 12);
    }
    for lost in 0..16 {
        assert_eq!(reads("rs(12,4)", lost).sources.len(), 12);
    }
    assert_eq!(reads("replica(3)", 0).sources, [1]);
}

#[test]
fn sources_are_the_cheapest() {
    let rs = code("rs(4,3)");
    let recipe = rs
        .recipe(&[0], &[(1, 9), (2, 1), (3, 1), (4, 5), (5, 2), (6, 5)])
        .unwrap();
    assert_eq!((recipe.sources, recipe.cost), (vec![2, 3, 4, 5], 9));
    let lrc = code("lrc(12,2,2)");
    let costs = |dear: usize, cost| -> Vec<(usize, u32)> {
        (1..16).map(|i| (i, if i == dear { cost } else { 1 })).collect()
    };
    // A dear member of the group: worth it up to the price of the six more that going around it takes.
    let through = lrc.recipe(&[0], &costs(3, 6)).unwrap();
    assert_eq!((through.sources, through.cost), (vec![1, 2, 3, 4, 5, 12], 11));
    let around = lrc.recipe(&[0], &costs(3, 9)).unwrap();
    assert_eq!((around.sources.len(), around.cost), (12, 12));
    assert!(!around.sources.contains(&3));
    // Two losses in two groups are two local repairs.
    let two = lrc.recipe(&[0, 6], &without(16, 1 | 1 << 6)).unwrap();
    assert_eq!(two.sources, [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13]);
    // What is wanted and there is read, not computed, and the other from its group.
    let mut one_there = costs(12, 2);
    one_there[5].1 = 1;
    let both = lrc.recipe(&[0, 6], &one_there).unwrap();
    assert_eq!((both.sources, both.cost), (vec![1, 2, 3, 4, 5, 6, 12], 8));
    let there = lrc.recipe(&[7], &without(16, 0)).unwrap();
    assert_eq!((there.sources, there.coefficients), (vec![7], vec![1]));
    // A group can be repaired when the rest of the stripe cannot.
    let rest_is_lost = without(16, 1 << 2 | 1 << 6 | 1 << 7 | 1 << 13 | 1 << 14 | 1 << 15);
    assert!(!lrc.is_decodable(rest_is_lost.iter().map(|&(i, _)| i)).unwrap());
    assert_eq!(lrc.recipe(&[2], &rest_is_lost).unwrap().sources.len(), 6);
}

#[test]
fn impossible_patterns_say_so() {
    let lrc = code("lrc(4,2,1)");
    // Two of each group: two equations of groups and a global one, for four.
    let left = without(7, 0b1111);
    let error = lrc.recipe(&[0, 2], &left).unwrap_err();
    assert_eq!(
        error.to_string(),
        "lrc(4,2,1): shards [0, 2] cannot be computed from [4, 5, 6]"
    );
    assert!(matches!(lrc.recipe(&[7], &left), Err(Error::NoSuchShard { .. })));
    assert!(matches!(
        lrc.recipe(&[0, 0], &left),
        Err(Error::DuplicateShard { .. })
    ));
    assert!(matches!(lrc.is_decodable([0, 7]), Err(Error::NoSuchShard { .. })));
    assert!(matches!(lrc.row(7), Err(Error::NoSuchShard { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 200 }, failure_persistence: None, ..ProptestConfig::default() })]

    /// No set of sources from which the lost shard follows is cheaper than the plan's, where that is promised.
    #[test]
    fn a_plan_for_one_shard_is_the_cheapest_there_is(
        scheme in prop_oneof![Just("lrc(6,2,2)"), Just("lrc(4,2,2)"), Just("lrc(6,3,1)"), Just("rs(6,3)"), Just("replica(5)")],
        wanted in 0usize..10,
        lost in (0u32..1024, 0u32..1024).prop_map(|(a, b)| a & b),
        costs in proptest::collection::vec(0u32..12, 10),
    ) {
        let code = code(scheme);
        let total = code.scheme().total_shards();
        let wanted = wanted % total;
        // Losses of three or so are the rule.
        let lost = lost | 1 << wanted;
        let sources: Vec<(usize, u32)> = without(total, lost).into_iter().map(|(i, _)| (i, costs[i])).collect();
        let mut cheapest: Option<u64> = None;
        for subset in 0..1u32 << sources.len() {
            let chosen = sources.iter().enumerate().filter(|(i, _)| subset >> i & 1 == 1).map(|(_, source)| *source);
            let cost = chosen.clone().map(|(_, cost)| u64::from(cost)).sum();
            if cheapest.is_some_and(|cheapest| cheapest <= cost) {
                continue;
            }
            let mut basis = Basis::new(code.generator.columns());
            chosen.for_each(|(shard, _)| { basis.add(code.generator.row(shard)); });
            if basis.express(code.generator.row(wanted)).is_some() {
                cheapest = Some(cost);
            }
        }
        prop_assert_eq!(code.recipe(&[wanted], &sources).ok().map(|recipe| recipe.cost), cheapest);
    }
}
