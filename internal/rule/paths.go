package rule

// Paths is a list of templates, packed: a map may have a million of them.
type Paths struct {
	text []byte
	ends []uint32 // of each in text
	keys Keys     // that any of them has
}

// Add appends t and returns its number.
func (p *Paths) Add(t Template) int {
	p.text = append(p.text, t.text...)
	p.ends = append(p.ends, uint32(len(p.text)))
	p.keys |= t.keys
	return len(p.ends) - 1
}

// Clip gives back what appending has left over.
func (p *Paths) Clip() {
	p.text, p.ends = append([]byte(nil), p.text...), append([]uint32(nil), p.ends...)
}

// Len returns how many there are. Nil has none.
func (p *Paths) Len() int {
	if p == nil {
		return 0
	}
	return len(p.ends)
}

// Keys returns the facts that choose a path, those of all templates together.
func (p *Paths) Keys() Keys {
	if p == nil {
		return 0
	}
	return p.keys
}

// Text returns all templates in a row; it stays p's.
func (p *Paths) Text() []byte { return p.text }

// At returns template i.
func (p *Paths) At(i int) Template {
	start := uint32(0)
	if i > 0 {
		start = p.ends[i-1]
	}
	t, err := ParseTemplate(string(p.text[start:p.ends[i]]))
	if err != nil {
		panic("rule: a template that was parsed before: " + err.Error())
	}
	return t
}
