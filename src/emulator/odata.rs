//! `$filter` and `$orderby`, as far as both services are known to take them. Names and enumeration words are compared
//! without case; instants are compared as instants.

use std::cmp::Ordering;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How deep parentheses and `not` may nest.
const DEEPEST: usize = 32;

/// A parsed `$filter`.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter(Expression);

#[derive(Clone, Debug, PartialEq)]
enum Expression {
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Not(Box<Expression>),
    Compare(Vec<String>, Comparison, Literal),
    In(Vec<String>, Vec<Literal>),
    Call(Function, Vec<String>, String),
    /// `labels/any(l: l/labelName eq 'x')`
    Any(Vec<String>, Box<Expression>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Contains,
    StartsWith,
    EndsWith,
}

#[derive(Clone, Debug, PartialEq)]
enum Literal {
    Text(String),
    Number(f64),
    Instant(OffsetDateTime),
    Bool(bool),
    Null,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Open,
    Close,
    Comma,
    Colon,
}

impl Filter {
    /// Parses; the error says where it stops making sense.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { tokens: tokens(text)?, next: 0, depth: 0, range: None };
        let expression = parser.or()?;
        match parser.peek() {
            None => Ok(Self(expression)),
            Some(token) => Err(format!("Syntax error: unexpected {token:?} in '{text}'.")),
        }
    }

    /// Whether an object passes. A property that is not there is null.
    pub fn matches(&self, object: &Value) -> bool {
        holds(&self.0, object)
    }

    /// Every property path that the filter names, as written.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        collect(&self.0, &mut paths);
        paths
    }
}

fn collect(expression: &Expression, paths: &mut Vec<String>) {
    match expression {
        Expression::And(left, right) | Expression::Or(left, right) => {
            collect(left, paths);
            collect(right, paths);
        }
        Expression::Not(inner) => collect(inner, paths),
        Expression::Compare(path, ..)
        | Expression::In(path, _)
        | Expression::Call(_, path, _)
        | Expression::Any(path, _) => paths.push(path.join("/")),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            ' ' | '\t' | '\n' | '\r' => {
                chars.next();
            }
            '(' | ')' | ',' | ':' => {
                chars.next();
                tokens.push(match c {
                    '(' => Token::Open,
                    ')' => Token::Close,
                    ',' => Token::Comma,
                    _ => Token::Colon,
                });
            }
            '\'' => {
                chars.next();
                let mut word = String::new();
                loop {
                    match chars.next() {
                        Some('\'') if chars.peek() == Some(&'\'') => {
                            chars.next();
                            word.push('\'');
                        }
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err("Syntax error: a text literal is not closed.".to_owned()),
                    }
                }
                tokens.push(Token::Text(word));
            }
            _ => {
                let mut word = String::new();
                while let Some(&c) = chars.peek() {
                    // A colon belongs to a time, and ends the variable of a lambda.
                    let part = c.is_alphanumeric()
                        || "-_./+@$".contains(c)
                        || c == ':' && word.starts_with(|c: char| c.is_ascii_digit());
                    if !part {
                        break;
                    }
                    word.push(c);
                    chars.next();
                }
                if word.is_empty() {
                    return Err(format!("Syntax error: character '{c}' is not valid here."));
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    depth: usize,
    /// The variable of the lambda that we are in.
    range: Option<String>,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next)
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.next).cloned();
        self.next += 1;
        token
    }

    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(next)) if next.eq_ignore_ascii_case(word));
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, token: &Token) -> Result<(), String> {
        match self.take() {
            Some(found) if found == *token => Ok(()),
            Some(found) => Err(format!("Syntax error: {found:?} where {token:?} was expected.")),
            None => Err("Syntax error: the filter ends too early.".to_owned()),
        }
    }

    fn or(&mut self) -> Result<Expression, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("The filter is nested too deeply.".to_owned());
        }
        let mut left = self.and()?;
        while self.word("or") {
            left = Expression::Or(Box::new(left), Box::new(self.and()?));
        }
        self.depth -= 1;
        Ok(left)
    }

    fn and(&mut self) -> Result<Expression, String> {
        let mut left = self.unary()?;
        while self.word("and") {
            left = Expression::And(Box::new(left), Box::new(self.unary()?));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expression, String> {
        if self.word("not") {
            self.depth += 1;
            if self.depth > DEEPEST {
                return Err("The filter is nested too deeply.".to_owned());
            }
            let inner = self.unary()?;
            self.depth -= 1;
            return Ok(Expression::Not(Box::new(inner)));
        }
        if self.peek() == Some(&Token::Open) {
            self.next += 1;
            let inner = self.or()?;
            self.expect(&Token::Close)?;
            return Ok(inner);
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expression, String> {
        let Some(Token::Word(name)) = self.take() else {
            return Err("Syntax error: a property name was expected.".to_owned());
        };
        if self.peek() == Some(&Token::Open) {
            self.next += 1;
            return self.call(&name);
        }
        let path = self.path(&name);
        if self.word("in") {
            self.expect(&Token::Open)?;
            let mut list = vec![self.literal()?];
            while self.peek() == Some(&Token::Comma) {
                self.next += 1;
                list.push(self.literal()?);
            }
            self.expect(&Token::Close)?;
            return Ok(Expression::In(path, list));
        }
        for (word, comparison) in [
            ("eq", Comparison::Eq),
            ("ne", Comparison::Ne),
            ("gt", Comparison::Gt),
            ("ge", Comparison::Ge),
            ("lt", Comparison::Lt),
            ("le", Comparison::Le),
        ] {
            if self.word(word) {
                return Ok(Expression::Compare(path, comparison, self.literal()?));
            }
        }
        Err(format!("Syntax error: an operator was expected after '{name}'."))
    }

    fn call(&mut self, name: &str) -> Result<Expression, String> {
        let lower = name.to_ascii_lowercase();
        if let Some(collection) = lower.strip_suffix("/any") {
            let Some(Token::Word(variable)) = self.take() else {
                return Err("Syntax error: any() needs a variable.".to_owned());
            };
            self.expect(&Token::Colon)?;
            let before = self.range.replace(variable);
            let inner = self.or()?;
            self.range = before;
            self.expect(&Token::Close)?;
            let path = self.path(&name[..collection.len()]);
            return Ok(Expression::Any(path, Box::new(inner)));
        }
        let function = match lower.as_str() {
            "contains" => Function::Contains,
            "startswith" => Function::StartsWith,
            "endswith" => Function::EndsWith,
            _ => return Err(format!("An unknown function with name '{name}' was found.")),
        };
        let Some(Token::Word(property)) = self.take() else {
            return Err(format!("Syntax error: {name}() needs a property."));
        };
        self.expect(&Token::Comma)?;
        let Some(Token::Text(text)) = self.take() else {
            return Err(format!("Syntax error: {name}() needs a text."));
        };
        self.expect(&Token::Close)?;
        Ok(Expression::Call(function, self.path(&property), text))
    }

    /// The path without the lambda's variable in front.
    fn path(&self, name: &str) -> Vec<String> {
        let mut path: Vec<String> = name.split('/').map(str::to_owned).collect();
        if path.len() > 1 && self.range.as_deref() == path.first().map(String::as_str) {
            path.remove(0);
        }
        path
    }

    fn literal(&mut self) -> Result<Literal, String> {
        match self.take() {
            Some(Token::Text(text)) => Ok(Literal::Text(text)),
            Some(Token::Word(word)) => match word.to_ascii_lowercase().as_str() {
                "true" => Ok(Literal::Bool(true)),
                "false" => Ok(Literal::Bool(false)),
                "null" => Ok(Literal::Null),
                _ => {
                    if let Some(at) = instant(&word) {
                        return Ok(Literal::Instant(at));
                    }
                    word.parse().map(Literal::Number).map_err(|_| format!("'{word}' is no literal."))
                }
            },
            _ => Err("Syntax error: a literal was expected.".to_owned()),
        }
    }
}

fn instant(text: &str) -> Option<OffsetDateTime> {
    // A date alone is the start of its day.
    let text = if text.len() == 10 && text.as_bytes().get(4) == Some(&b'-') {
        format!("{text}T00:00:00Z")
    } else {
        text.to_owned()
    };
    OffsetDateTime::parse(&text, &Rfc3339).ok()
}

/// A member by path, names without case.
fn find<'v>(object: &'v Value, path: &[String]) -> &'v Value {
    path.iter().fold(object, |object, name| member(object, name))
}

fn member<'v>(object: &'v Value, name: &str) -> &'v Value {
    object
        .as_object()
        .and_then(|members| members.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)))
        .map_or(&Value::Null, |(_, value)| value)
}

fn holds(expression: &Expression, object: &Value) -> bool {
    match expression {
        Expression::And(left, right) => holds(left, object) && holds(right, object),
        Expression::Or(left, right) => holds(left, object) || holds(right, object),
        Expression::Not(inner) => !holds(inner, object),
        Expression::Compare(path, comparison, literal) => {
            let ordering = order(find(object, path), literal);
            match comparison {
                Comparison::Eq => ordering == Some(Ordering::Equal),
                Comparison::Ne => ordering != Some(Ordering::Equal),
                Comparison::Gt => ordering == Some(Ordering::Greater),
                Comparison::Ge => matches!(ordering, Some(Ordering::Greater | Ordering::Equal)),
                Comparison::Lt => ordering == Some(Ordering::Less),
                Comparison::Le => matches!(ordering, Some(Ordering::Less | Ordering::Equal)),
            }
        }
        Expression::In(path, list) => {
            let value = find(object, path);
            list.iter().any(|literal| order(value, literal) == Some(Ordering::Equal))
        }
        Expression::Call(function, path, text) => {
            let Some(value) = find(object, path).as_str().map(str::to_lowercase) else { return false };
            let text = text.to_lowercase();
            match function {
                Function::Contains => value.contains(&text),
                Function::StartsWith => value.starts_with(&text),
                Function::EndsWith => value.ends_with(&text),
            }
        }
        Expression::Any(path, inner) => {
            find(object, path).as_array().is_some_and(|list| list.iter().any(|member| holds(inner, member)))
        }
    }
}

/// `None` where the two cannot be compared.
fn order(value: &Value, literal: &Literal) -> Option<Ordering> {
    match (value, literal) {
        (Value::Null, Literal::Null) => Some(Ordering::Equal),
        (Value::String(text), Literal::Text(literal)) => {
            Some(text.to_lowercase().cmp(&literal.to_lowercase()))
        }
        (Value::String(text), Literal::Instant(at)) => Some(instant(text)?.cmp(at)),
        (Value::Number(number), Literal::Number(literal)) => number.as_f64()?.partial_cmp(literal),
        (Value::Bool(value), Literal::Bool(literal)) => Some(value.cmp(literal)),
        _ => None,
    }
}

/// A parsed `$orderby`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderBy(Vec<(Vec<String>, bool)>);

impl OrderBy {
    /// Parses `a/b desc,c`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut terms = Vec::new();
        for term in text.split(',') {
            let mut words = term.split_whitespace();
            let Some(path) = words.next() else {
                return Err(format!("Syntax error in '$orderby={text}'."));
            };
            let descending = match words.next().map(str::to_ascii_lowercase).as_deref() {
                None | Some("asc") => false,
                Some("desc") => true,
                Some(word) => return Err(format!("Syntax error: '{word}' is neither asc nor desc.")),
            };
            if words.next().is_some() {
                return Err(format!("Syntax error in '$orderby={text}'."));
            }
            terms.push((path.split('/').map(str::to_owned).collect(), descending));
        }
        Ok(Self(terms))
    }

    /// The order of two objects. Null comes first; instants are compared as instants.
    pub fn compare(&self, left: &Value, right: &Value) -> Ordering {
        for (path, descending) in &self.0 {
            let ordering = rank(find(left, path), find(right, path));
            if ordering != Ordering::Equal {
                return if *descending { ordering.reverse() } else { ordering };
            }
        }
        Ordering::Equal
    }

    /// Every property path, as written.
    pub fn paths(&self) -> Vec<String> {
        self.0.iter().map(|(path, _)| path.join("/")).collect()
    }
}

fn rank(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::String(l), Value::String(r)) => match (instant(l), instant(r)) {
            (Some(l), Some(r)) => l.cmp(&r),
            _ => l.to_lowercase().cmp(&r.to_lowercase()),
        },
        (Value::Number(l), Value::Number(r)) => {
            l.as_f64().partial_cmp(&r.as_f64()).unwrap_or(Ordering::Equal)
        }
        (Value::Null, Value::Null) => Ordering::Equal,
        (Value::Null, _) => Ordering::Less,
        (_, Value::Null) => Ordering::Greater,
        _ => Ordering::Equal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn filters_as_they_are_used() {
        let object = json!({
            "lastUpdateDateTime": "2026-02-25T16:29:33.1Z", "status": "active", "severity": "high",
            "assignedTo": null, "n": 101, "description": "It's here",
            "properties": {"lastModifiedTimeUtc": "2026-03-04T10:00:00.5Z", "title": "Phish",
                "labels": [{"labelName": "a"}, {"labelName": "VIP"}]},
        });
        for (text, expected) in [
            ("lastUpdateDateTime ge 2026-02-25T16:29:33.0999999Z", true),
            ("lastUpdateDateTime gt 2026-02-25T16:29:33.1000000Z", false),
            ("lastUpdateDateTime ge 2026-02-25T17:29:33.1+01:00", true),
            ("lastUpdateDateTime ge 2026-02-26", false),
            ("status eq 'Active' and severity eq 'high'", true),
            ("status eq 'resolved' or (severity eq 'high' and not (n gt 200))", true),
            ("assignedTo eq null", true),
            ("assignedTo ne 'x'", true),
            ("missing eq null", true),
            ("n ge 101", true),
            ("description eq 'it''s here'", true),
            ("status in ('active','resolved')", true),
            ("properties/LastModifiedTimeUtc ge 2026-03-04T10:00:00Z", true),
            ("contains(properties/title, 'hish')", true),
            ("startswith(properties/title,'x')", false),
            ("properties/labels/any(l: l/labelName eq 'vip')", true),
            ("properties/labels/any(l: l/labelName eq 'b')", false),
        ] {
            let filter = Filter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(filter.matches(&object), expected, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_and_deep_nonsense_too() {
        for text in [
            "",
            "status",
            "status eq",
            "status is 'x'",
            "(status eq 'x'",
            "status eq 'x",
            "status eq 'x' and",
            "f(x,'y')",
            "status eq 'x' 'y'",
            "a eq 12x",
        ] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
        assert!(Filter::parse(&"(".repeat(100_000)).is_err());
        assert!(Filter::parse(&"not ".repeat(100_000)).is_err());
    }

    #[test]
    fn order_follows_instants_and_numbers() {
        let order = OrderBy::parse("properties/t asc, n desc").expect("good");
        let early = json!({"properties": {"t": "2026-01-01T00:00:00.9Z"}, "n": 1});
        let late = json!({"properties": {"t": "2026-01-01T00:00:00.95Z"}, "n": 10});
        assert_eq!(order.compare(&early, &late), Ordering::Less);
        let more = json!({"properties": {"t": "2026-01-01T00:00:00.9000Z"}, "n": 2});
        assert_eq!(order.compare(&early, &more), Ordering::Greater);
        assert!(OrderBy::parse("a up").is_err());
    }
}
