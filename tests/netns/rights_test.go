package netns

func (s *standin) intrude() error { return nil }
