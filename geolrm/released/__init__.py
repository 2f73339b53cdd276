"""Around the released mode (`geolrm.model.released`): its check against recorded outputs, its surroundings, its effects."""
