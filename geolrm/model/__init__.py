"""The model as the paper describes it: encoder, rope, deformable, transformer, proposal, reconstruction, geolrm."""
