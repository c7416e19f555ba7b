//! grubenv, the block in which GRUB keeps variables from one boot to the next.

const HEAD: &str = "# GRUB Environment Block\n";

/// The variables in a block.
pub(super) fn parse(block: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(block);
    let Some(body) = text.strip_prefix(HEAD) else {
        return Vec::new();
    };
    let mut variables = Vec::new();
    let mut line = String::new();
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => line.extend(chars.next()),
            '\n' => {
                // What is left of the block is filled up with #.
                let assignment = line.split_once('=').filter(|(n, _)| !n.starts_with('#'));
                variables.extend(assignment.map(|(n, v)| (n.to_owned(), v.to_owned())));
                line.clear();
            }
            c => line.push(c),
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_s_variables_are_read_and_its_filling_is_not() {
        let block = format!("{HEAD}saved_entry=0>1\n# WARNING=x\na=b\\\\c\n#######");
        let variables = parse(block.as_bytes());
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        assert_eq!(variables, [pair("saved_entry", "0>1"), pair("a", "b\\c")]);
        assert!(parse(b"saved_entry=1\n").is_empty());
    }
}
