/// Returns how many of `rows` rows each weight is due: by largest remainder (Hamilton's method),
/// so every quota is its ideal share rounded down or up, and they sum to `rows` exactly. Equal
/// remainders go to the earlier position. Without any weight all quotas are zero.
pub fn quotas(weights: &[u32], rows: u32) -> Vec<u32> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    if total == 0 {
        return vec![0; weights.len()];
    }
    let product = |weight: u32| u64::from(weight) * u64::from(rows);
    let mut quotas: Vec<u32> = weights
        .iter()
        .map(|weight| (product(*weight) / total) as u32)
        .collect();
    let given: u32 = quotas.iter().sum();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|&at| {
        let remainder = weights.get(at).map_or(0, |weight| product(*weight) % total);
        (std::cmp::Reverse(remainder), at)
    });
    for at in by_remainder.into_iter().take((rows - given) as usize) {
        if let Some(quota) = quotas.get_mut(at) {
            *quota += 1;
        }
    }
    quotas
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn largest_remainders_get_what_is_left() {
        assert_eq!(quotas(&[1, 1, 1], 256), [86, 85, 85]);
        assert_eq!(quotas(&[3, 1, 0], 8), [6, 2, 0]);
        assert_eq!(quotas(&[0, 0], 8), [0, 0]);
        assert_eq!(quotas(&[], 8), [0; 0]);
        assert_eq!(
            quotas(&[65_535; 3], 1 << 20).iter().sum::<u32>(),
            1 << 20,
            "no overflow"
        );
    }

    proptest! {
        #[test]
        fn quotas_are_exact_to_one_row(
            weights in prop::collection::vec(0_u32..=65_535, 1..200), bits in 0_u32..=20,
        ) {
            let rows = 1 << bits;
            let quotas = quotas(&weights, rows);
            let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            prop_assume!(total > 0);
            prop_assert_eq!(quotas.iter().sum::<u32>(), rows);
            for (weight, quota) in weights.iter().zip(&quotas) {
                let ideal = f64::from(*weight) * f64::from(rows) / total as f64;
                prop_assert!((f64::from(*quota) - ideal).abs() < 1.0 + 1e-9);
            }
        }
    }
}
