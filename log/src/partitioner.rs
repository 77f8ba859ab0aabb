//! Which partition a key belongs to: Kafka's own rule, so that a key stays in its partition on every backend and
//! with every client of the topic.

use click::Partition;

/// The partition of a key in a topic with this many partitions, as Kafka's default partitioner has it:
/// `toPositive(murmur2(key)) % partitions`. A topic has at least one partition; a count below that is taken for one.
pub fn partition_of(key: &[u8], partitions: Partition) -> Partition {
    (murmur2(key) & i32::MAX) % partitions.max(1)
}

/// MurmurHash2 (32 bits) with Kafka's seed.
fn murmur2(key: &[u8]) -> i32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    // Java's arithmetic wraps; so does the length of a key past 4 GiB, which no topic takes.
    let mut hash = SEED ^ key.len() as u32;
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let word = rest.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        hash = (hash ^ word).wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    (hash ^ hash >> 15) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_kafkas() {
        let check = |key: &str, hash: i32| assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
        check("21", -973932308);
        check("foobar", -790332482);
        check("a-little-bit-long-string", -985981536);
        check("a-little-bit-longer-string", -1486304829);
        check("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971);
        check("abc", 479470107);
    }

    #[test]
    fn a_partition_is_one_of_the_topics() {
        for partitions in 1..20 {
            let mut seen = vec![0; partitions as usize];
            for n in 0..2_000 {
                seen[partition_of(format!("imp_{n}").as_bytes(), partitions) as usize] += 1;
            }
            assert!(seen.iter().all(|count| *count > 2_000 / partitions / 2), "{seen:?}");
        }
        assert_eq!(partition_of(b"abc", 4), 479470107 % 4);
        assert_eq!(partition_of(b"21", 4), (-973932308_i32 & i32::MAX) % 4);
    }
}
