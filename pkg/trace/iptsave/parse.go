package iptsave

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/trace"
)

// parser reads one rule.
type parser struct {
	file   *file
	chain  *trace.Chain
	tokens []token
	next   int
	module string // the last -m
	begin  int    // the token of that -m
	since  int    // the rule's statements ahead of it
	doubt  int    // the statement, from 1, that stands for what is not known of that module; 0 if all is known
	not    bool   // "!" stood before the option
	rule   *trace.Rule
	target target
	mode   string // of -m statistic
}

// token is a word and where it stands in the line.
type token struct {
	text       string
	start, end int
}

// parse reads a rule, the line without "-A CHAIN". What it can't read becomes unknown.
func (f *file) parse(c *trace.Chain, line string) *trace.Rule {
	tokens, err := split(line)
	r := &trace.Rule{Chain: c, Text: line}
	if err != nil {
		r.Statements = []trace.Statement{trace.UnknownEffect{Text: line, Reason: err.Error()}}
		return r
	}
	p := &parser{file: f, chain: c, tokens: tokens, rule: r}
	for p.next < len(p.tokens) {
		p.option()
	}
	p.finish()
	p.cutComment(line)
	return r
}

// split cuts a line into words, as iptables-save quotes them.
func split(line string) ([]token, error) {
	var tokens []token
	for i := 0; i < len(line); {
		if line[i] == ' ' || line[i] == '\t' {
			i++
			continue
		}
		t, err := word(line, i)
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, t)
		i = t.end
	}
	return tokens, nil
}

func word(line string, start int) (token, error) {
	var b strings.Builder
	quoted := false
	i := start
	for ; i < len(line) && (quoted || line[i] != ' ' && line[i] != '\t'); i++ {
		switch {
		case line[i] == '"':
			quoted = !quoted
			continue
		case line[i] == '\\' && quoted && i+1 < len(line):
			i++
		}
		b.WriteByte(line[i])
	}
	if quoted {
		return token{}, errors.New("a quotation mark has no counterpart")
	}
	return token{b.String(), start, i}, nil
}

// option reads one option with its arguments.
func (p *parser) option() {
	first := p.next
	p.not = p.tokens[p.next].text == "!"
	if p.not {
		p.next++
	}
	if p.next == len(p.tokens) {
		p.unknown(first, "the rule ends behind \"!\"")
		return
	}
	name := p.tokens[p.next].text
	p.next++
	read, ok := p.find(name)
	if !ok {
		p.skip()
		p.unknown(first, "")
		return
	}
	args := p.tokens[p.next:]
	if len(args) < read.args {
		p.next = len(p.tokens)
		p.unknown(first, fmt.Sprintf("option %s lacks an argument", name))
		return
	}
	p.next += read.args
	words := make([]string, read.args)
	for i := range words {
		words[i] = args[i].text
	}
	if err := read.read(p, words, p.text(first)); err != nil {
		p.unknown(first, fmt.Sprintf("%s: %v", p.text(first), err))
	}
	p.closeDoubt(name)
}

// closeDoubt has the statement for what is not known of a module name all its options: those of another list or rate are another condition.
func (p *parser) closeDoubt(option string) {
	if p.doubt == 0 || p.target.name != "" {
		return
	}
	if _, generic := options[option]; generic {
		p.doubt = 0
		return
	}
	u := p.rule.Statements[p.doubt-1].(trace.UnknownMatch) //nolint:forcetypeassert // unknown has put it there
	u.Text = p.text(p.begin)
	p.rule.Statements[p.doubt-1] = u
}

// find returns the reader of an option: that of the target, of the module, or one that every rule may have.
func (p *parser) find(name string) (option, bool) {
	if p.target.name != "" {
		o, ok := targetOptions[name]
		return o, ok && slices.Contains(o.of, p.target.name)
	}
	if o, ok := modules[p.module][name]; ok {
		return o, true
	}
	o, ok := options[name]
	return o, ok
}

// skip passes the arguments of an option that is not known.
func (p *parser) skip() {
	for p.next < len(p.tokens) && p.tokens[p.next].text != "!" && !strings.HasPrefix(p.tokens[p.next].text, "-") {
		p.next++
	}
}

// text is what the rule says from token first up to the next one.
func (p *parser) text(first int) string {
	return p.rule.Text[p.tokens[first].start:p.tokens[p.next-1].end]
}

// unknown adds what can't be read: to the target's effect, or as a match.
func (p *parser) unknown(first int, reason string) {
	text := p.text(first)
	if p.target.name != "" {
		p.target.unknown = append(p.target.unknown, text)
		return
	}
	if p.module == "" {
		p.add(trace.UnknownMatch{Text: text, Reason: reason})
		return
	}
	if p.doubt == 0 {
		p.add(nil)
		p.doubt = len(p.rule.Statements)
	}
	p.rule.Statements[p.doubt-1] = trace.UnknownMatch{Text: p.text(p.begin), Reason: reason}
}

func (p *parser) add(s trace.Statement) { p.rule.Statements = append(p.rule.Statements, s) }

// cutComment moves the comments from the rule's text to Comment.
func (p *parser) cutComment(line string) {
	var text strings.Builder
	from := 0
	for i := 0; i+3 < len(p.tokens); i++ {
		if p.tokens[i].text != "-m" || p.tokens[i+1].text != "comment" || p.tokens[i+2].text != "--comment" {
			continue
		}
		text.WriteString(line[from:p.tokens[i].start])
		from = min(p.tokens[i+3].end+1, len(line))
	}
	p.rule.Text = strings.TrimSpace(text.String() + line[from:])
}
