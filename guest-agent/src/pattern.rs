//! Patterns of names, as the shell has them: `*` stands for anything, `?` for one character.

/// Whether `text` is what `pattern` stands for. Its time grows with the product of their lengths at
/// most, for either may be anybody's.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut rest, mut star) = (&pattern[..], &text[..], None);
    loop {
        match (at, rest) {
            ([], []) => return true,
            (['*', after @ ..], _) => {
                star = Some((after, rest));
                at = after;
            }
            ([a, after @ ..], [b, others @ ..]) if *a == '?' || a == b => {
                (at, rest) = (after, others);
            }
            // The last star takes one more.
            _ => {
                let Some((after, [_, others @ ..])) = star else {
                    return false;
                };
                star = Some((after, others));
                (at, rest) = (after, others);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_matched_in_a_time_that_grows_with_it() {
        for (pattern, text, like) in [
            ("", "", true),
            ("*", "", true),
            ("en*s?", "enp1s0", true),
            ("*s0*", "enp1s0", true),
            ("e*1*2", "enp1s0", false),
            ("enp1s0?", "enp1s0", false),
            ("a?c", "aéc", true),
            ("arch-*", "arch-linux.conf", true),
            ("*.conf", "a.conf", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("ab", "abc", false),
        ] {
            assert_eq!(matches(pattern, text), like, "{pattern}");
        }
        let pattern = "*a".repeat(120) + "b";
        assert!(!matches(&pattern, &"a".repeat(5000)));
    }
}
