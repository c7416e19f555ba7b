//! GRUB's script language: words, commands, blocks (GRUB's manual, "Writing full configuration
//! files directly").

use std::rc::Rc;

/// Blocks within blocks.
const MAX_DEPTH: usize = 32;
/// What cannot begin a command.
const RESERVED: [&str; 6] = ["then", "elif", "else", "fi", "do", "done"];

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    /// Outside quotes its value is split at spaces.
    Variable {
        name: String,
        quoted: bool,
    },
}

/// A word, before its variables have values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) pieces: Vec<Piece>,
    /// A part of it was in quotes: it is a word though it be empty, and no reserved one.
    pub(super) quoted: bool,
}

impl Word {
    /// The text of a word that is only that.
    fn bare(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece::Text(text)] if !self.quoted => Some(text),
            _ => None,
        }
    }
}

/// Statements, which are shared by whoever runs them later.
pub(super) type Block = Rc<Vec<Statement>>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Statement {
    /// A command, with the block that `menuentry` and `submenu` have.
    Command {
        words: Vec<Word>,
        block: Option<Block>,
    },
    /// Conditions with what is done where they hold, and what is done where none does.
    If {
        branches: Vec<(Block, Block)>,
        otherwise: Block,
    },
    /// `while`, or `until`.
    While {
        condition: Block,
        until: bool,
        body: Block,
    },
    For {
        name: String,
        words: Vec<Word>,
        body: Block,
    },
    Function {
        name: String,
        body: Block,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Word),
    End,
    Open,
    Close,
}

/// Reads a script. The error begins with the line's number.
pub(super) fn parse(text: &str) -> Result<Block, String> {
    let mut parser = Parser {
        tokens: tokens(text)?,
        at: 0,
        depth: 0,
    };
    let statements = parser.statements(&[])?;
    Ok(statements)
}

/// The variables in a text, as if it stood in double quotes.
pub(super) fn interpolate(text: &str) -> Vec<Piece> {
    let mut chars = text.chars().peekable();
    let mut pieces = Vec::new();
    let mut plain = String::new();
    while let Some(c) = chars.next() {
        match c {
            '$' => variable(&mut chars, true, &mut plain, &mut pieces),
            c => plain.push(c),
        }
    }
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    pieces
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// What follows a dollar sign.
fn variable(chars: &mut Chars<'_>, quoted: bool, plain: &mut String, pieces: &mut Vec<Piece>) {
    let mut name = String::new();
    if chars.next_if_eq(&'{').is_some() {
        for c in chars.by_ref() {
            if c == '}' {
                break;
            }
            name.push(c);
        }
    } else if let Some(special) = chars.next_if(|c| "?#@*".contains(*c) || c.is_ascii_digit()) {
        name.push(special);
    } else {
        while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
        }
    }
    if name.is_empty() {
        plain.push('$');
        return;
    }
    if !plain.is_empty() {
        pieces.push(Piece::Text(std::mem::take(plain)));
    }
    pieces.push(Piece::Variable { name, quoted });
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, String> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            '\n' | ';' => {
                chars.next();
                tokens.push((line, Token::End));
                line += usize::from(c == '\n');
            }
            c if c.is_whitespace() => drop(chars.next()),
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            _ => {
                let start = line;
                let word = word(&mut chars, &mut line)?;
                let token = match word.bare() {
                    Some("{") => Token::Open,
                    Some("}") => Token::Close,
                    _ => Token::Word(word),
                };
                tokens.push((start, token));
            }
        }
    }
    Ok(tokens)
}

fn word(chars: &mut Chars<'_>, line: &mut usize) -> Result<Word, String> {
    let mut word = Word::default();
    let mut plain = String::new();
    let start = *line;
    let open = |quote| format!("{start}: a {quote} is not closed");
    while let Some(c) = chars.next_if(|c| !c.is_whitespace() && *c != ';') {
        match c {
            '\\' => match chars.next() {
                Some('\n') => *line += 1,
                Some(c) => plain.push(c),
                None => {}
            },
            '\'' => {
                word.quoted = true;
                loop {
                    match chars.next().ok_or_else(|| open("'"))? {
                        '\'' => break,
                        c => {
                            *line += usize::from(c == '\n');
                            plain.push(c);
                        }
                    }
                }
            }
            '"' => {
                word.quoted = true;
                loop {
                    match chars.next().ok_or_else(|| open("\""))? {
                        '"' => break,
                        '\\' => match chars.next() {
                            Some('\n') => *line += 1,
                            Some(c @ ('"' | '$' | '\\')) => plain.push(c),
                            Some(c) => plain.extend(['\\', c]),
                            None => {}
                        },
                        '$' => variable(chars, true, &mut plain, &mut word.pieces),
                        c => {
                            *line += usize::from(c == '\n');
                            plain.push(c);
                        }
                    }
                }
            }
            '$' => variable(chars, false, &mut plain, &mut word.pieces),
            c => plain.push(c),
        }
    }
    if !plain.is_empty() {
        word.pieces.push(Piece::Text(plain));
    }
    Ok(word)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn line(&self) -> usize {
        let at = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(at).map_or(1, |(line, _)| *line)
    }

    fn fail<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("{}: {what}", self.line()))
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn reserved(&self) -> Option<&str> {
        match self.peek() {
            Some(Token::Word(word)) => word.bare(),
            _ => None,
        }
    }

    fn skip_ends(&mut self) {
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
    }

    fn expect(&mut self, name: &str) -> Result<(), String> {
        self.skip_ends();
        if self.reserved() != Some(name) {
            return self.fail(&format!("`{name}` is missing"));
        }
        self.at += 1;
        Ok(())
    }

    /// Statements up to one of these words, or to a closing brace for `}`, or to the end.
    fn statements(&mut self, ends: &[&str]) -> Result<Block, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fail("too many blocks within each other");
        }
        let mut statements = Vec::new();
        loop {
            self.skip_ends();
            match self.peek() {
                None if ends.is_empty() => break,
                None => return self.fail("the file ends within a block"),
                Some(Token::Close) if ends.contains(&"}") => break,
                Some(Token::Open | Token::Close) => return self.fail("a brace has no other"),
                _ => {}
            }
            if self.reserved().is_some_and(|word| ends.contains(&word)) {
                break;
            }
            let statement = self.statement()?;
            statements.push(statement);
        }
        self.depth -= 1;
        Ok(Rc::new(statements))
    }

    /// A block in braces.
    fn braces(&mut self) -> Result<Block, String> {
        self.skip_ends();
        if self.peek() != Some(&Token::Open) {
            return self.fail("`{` is missing");
        }
        self.at += 1;
        let block = self.statements(&["}"])?;
        self.at += 1;
        Ok(block)
    }

    fn statement(&mut self) -> Result<Statement, String> {
        let word = self.reserved().unwrap_or_default().to_owned();
        match word.as_str() {
            "if" => self.condition(),
            "while" | "until" => {
                self.at += 1;
                let condition = self.statements(&["do"])?;
                Ok(Statement::While {
                    condition,
                    until: word == "until",
                    body: self.body()?,
                })
            }
            "for" => {
                self.at += 1;
                let name = self.reserved().unwrap_or_default().to_owned();
                self.at += 1;
                self.expect("in")?;
                Ok(Statement::For {
                    name,
                    words: self.words(),
                    body: self.body()?,
                })
            }
            "function" => {
                self.at += 1;
                let name = self.reserved().unwrap_or_default().to_owned();
                self.at += 1;
                let body = self.braces()?;
                Ok(Statement::Function { name, body })
            }
            word if RESERVED.contains(&word) => self.fail(&format!("`{word}` is out of place")),
            _ => {
                let words = self.words();
                let block = match self.peek() {
                    Some(Token::Open) => Some(self.braces()?),
                    _ => None,
                };
                Ok(Statement::Command { words, block })
            }
        }
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some((_, Token::Word(word))) = self.tokens.get(self.at) {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    fn body(&mut self) -> Result<Block, String> {
        self.expect("do")?;
        let body = self.statements(&["done"])?;
        self.expect("done")?;
        Ok(body)
    }

    fn condition(&mut self) -> Result<Statement, String> {
        let mut branches = Vec::new();
        let mut otherwise = Block::default();
        loop {
            // `if`, or `elif`.
            self.at += 1;
            let condition = self.statements(&["then"])?;
            self.expect("then")?;
            branches.push((condition, self.statements(&["elif", "else", "fi"])?));
            match self.reserved() {
                Some("elif") => {}
                Some("else") => {
                    self.at += 1;
                    otherwise = self.statements(&["fi"])?;
                    break;
                }
                _ => break,
            }
        }
        self.expect("fi")?;
        Ok(Statement::If {
            branches,
            otherwise,
        })
    }
}
